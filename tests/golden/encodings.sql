-- What becomes of a sample of all characters and byte sequences in every conversion: how many have an
-- equivalent, a digest of all equivalents and error messages, and the last error message.
-- encodings.txt beside this file is what PostgreSQL 15.18 answers (psql -XAt).
create function pg_temp.sample(conversion text, source text, target text) returns text language plpgsql as $$
declare
  answer text; answers text := ''; last_error text; count int := 0;
begin
  for i in 1..65535 by 53 loop
    begin
      case conversion
        when 'to' then answer := encode(convert_to(chr(i), target), 'hex');
        when 'from' then
          -- One to four bytes.
          answer := convert_from(substr(decode(lpad(to_hex(i), 4, '0') || md5(i::text), 'hex'), 1 + i % 2, 1 + i % 4), source);
        else answer := encode(convert(decode(lpad(to_hex(i), 4, '0'), 'hex'), source, target), 'hex');
      end case;
      count := count + 1;
    exception
      when untranslatable_character or character_not_in_repertoire or program_limit_exceeded or invalid_parameter_value then
        answer := sqlstate || sqlerrm;
        last_error := answer;
    end;
    answers := answers || answer || '/';
  end loop;
  return count || ' ' || md5(answers) || ' ' || last_error;
end $$;
select 'UTF8', encoding, pg_temp.sample('to', 'UTF8', encoding)
from (select distinct pg_encoding_to_char(contoencoding) encoding from pg_conversion where conforencoding = 6 and contoencoding <> 39) x
order by encoding collate "C";
select encoding, 'UTF8', pg_temp.sample('from', encoding, 'UTF8')
from (select distinct pg_encoding_to_char(conforencoding) encoding from pg_conversion where contoencoding = 6) x
order by encoding collate "C";
select source, target, pg_temp.sample('between', source, target)
from (select pg_encoding_to_char(conforencoding) source, pg_encoding_to_char(contoencoding) target
      from pg_conversion where conforencoding <> 6 and contoencoding <> 6) x
order by source collate "C", target collate "C";
-- Every character has an equivalent in GB18030.
select 'UTF8', 'GB18030', md5(string_agg(convert_to(chr(i), 'GB18030'), '')) from generate_series(128, 55295) i;
