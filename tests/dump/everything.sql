-- Every kind of object that pg_dump knows, as far as PGlite has it.
CREATE ROLE dump_owner;
CREATE ROLE dump_reader NOLOGIN;
CREATE SCHEMA shop AUTHORIZATION dump_owner;
COMMENT ON SCHEMA shop IS 'it''s a shop; \. with rows';
CREATE EXTENSION hstore WITH SCHEMA shop;
CREATE EXTENSION citext WITH SCHEMA shop;
CREATE EXTENSION file_fdw;
SET search_path = shop, public;

-- Types
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s fine', 'ünïcode');
ALTER TYPE mood ADD VALUE 'happy' AFTER 'ok';
CREATE TYPE point3 AS (x double precision, y double precision, z double precision);
COMMENT ON COLUMN point3.z IS 'height';
CREATE TYPE float_range AS RANGE (subtype = float8, subtype_diff = float8mi, multirange_type_name = float_ranges);
CREATE DOMAIN positive AS integer DEFAULT 1 NOT NULL CHECK (VALUE > 0);
ALTER DOMAIN positive ADD CONSTRAINT small CHECK (VALUE < 1000000) NOT VALID;
COMMENT ON DOMAIN positive IS 'more than nothing';
COMMENT ON TYPE mood IS 'how one feels';

-- Base types, with functions of the server itself
CREATE TYPE label;
CREATE FUNCTION label_in(cstring) RETURNS label LANGUAGE internal STRICT IMMUTABLE AS 'textin';
CREATE FUNCTION label_out(label) RETURNS cstring LANGUAGE internal STRICT IMMUTABLE AS 'textout';
CREATE TYPE label (INPUT = label_in, OUTPUT = label_out, LIKE = text, CATEGORY = 'S');
CREATE TYPE unfinished;
COMMENT ON TYPE unfinished IS 'a shell';

-- Functions, procedures, aggregates, operators, casts
CREATE FUNCTION add_tax(amount numeric, rate numeric DEFAULT 0.19) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN amount * (1 + rate);
CREATE FUNCTION classify(n integer) RETURNS text LANGUAGE sql
    BEGIN ATOMIC
        SELECT CASE WHEN n > 0 THEN 'positive;' ELSE 'other' END;
        SELECT 'last; one'::text AS text;
    END;
CREATE FUNCTION quoted() RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = shop AS $body$
DECLARE
    said text := $x$a $ b; \. c$x$;
BEGIN
    -- a comment; with a semicolon
    RETURN said || E'\\n\'' || 'x';
END
$body$;
CREATE PROCEDURE refill(INOUT times integer) LANGUAGE plpgsql AS $$BEGIN times := times + 1; END$$;
CREATE FUNCTION pair(OUT a integer, OUT b text) RETURNS SETOF record LANGUAGE sql AS 'SELECT 1, ''one''';
CREATE FUNCTION many(VARIADIC integer[]) RETURNS bigint LANGUAGE sql COST 7 AS 'SELECT sum(n) FROM unnest($1) n';
CREATE AGGREGATE total(numeric) (SFUNC = numeric_add, STYPE = numeric, INITCOND = '0');
CREATE AGGREGATE most(ORDER BY anyelement)
    (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = mode_final, FINALFUNC_EXTRA);
CREATE FUNCTION point_distance(point3, point3) RETURNS double precision LANGUAGE sql IMMUTABLE AS
    'SELECT sqrt(power($1.x - $2.x, 2) + power($1.y - $2.y, 2) + power($1.z - $2.z, 2))';
CREATE OPERATOR <-> (LEFTARG = point3, RIGHTARG = point3, FUNCTION = point_distance, COMMUTATOR = <->);
COMMENT ON OPERATOR <-> (point3, point3) IS 'as the crow flies';
CREATE FUNCTION mood_number(mood) RETURNS integer LANGUAGE sql IMMUTABLE AS
    'SELECT CASE $1 WHEN ''sad'' THEN 0 ELSE 1 END';
CREATE CAST (mood AS integer) WITH FUNCTION mood_number(mood) AS ASSIGNMENT;
COMMENT ON CAST (mood AS integer) IS 'sad is nothing';
CREATE CAST (label AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE FUNCTION reverse_compare(integer, integer) RETURNS integer LANGUAGE sql IMMUTABLE AS
    'SELECT CASE WHEN $1 < $2 THEN 1 WHEN $1 > $2 THEN -1 ELSE 0 END';
CREATE OPERATOR FAMILY backwards USING btree;
CREATE OPERATOR CLASS backwards_int4 FOR TYPE integer USING btree FAMILY backwards AS
    OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 reverse_compare(integer, integer);
CREATE CONVERSION from_latin1 FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TRANSFORM FOR hstore LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal));

-- A language, whose functions are those of another one
CREATE FUNCTION spoken_call() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE FUNCTION spoken_inline(internal) RETURNS void LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_inline_handler';
CREATE FUNCTION spoken_validator(oid) RETURNS void LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_validator';
CREATE TRUSTED LANGUAGE spoken HANDLER spoken_call INLINE spoken_inline VALIDATOR spoken_validator;
COMMENT ON LANGUAGE spoken IS 'by few';
CREATE FUNCTION say(what text) RETURNS text LANGUAGE spoken AS $$BEGIN RETURN what || '!'; END$$;

-- Collations and text search
CREATE COLLATION plain (PROVIDER = libc, LOCALE = 'C');
CREATE COLLATION numeric_order (PROVIDER = icu, LOCALE = 'und-u-kn-true', DETERMINISTIC = false);
COMMENT ON COLLATION numeric_order IS 'a2 before a10';
CREATE TEXT SEARCH TEMPLATE simple_copy (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH PARSER default_copy
    (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype, HEADLINE = prsd_headline);
CREATE TEXT SEARCH DICTIONARY terse (TEMPLATE = simple_copy, ACCEPT = 'false');
CREATE TEXT SEARCH CONFIGURATION shop_words (PARSER = default_copy);
ALTER TEXT SEARCH CONFIGURATION shop_words ADD MAPPING FOR asciiword, word WITH terse, english_stem;
COMMENT ON TEXT SEARCH CONFIGURATION shop_words IS 'words of the shop';

-- Tables
CREATE SEQUENCE order_number AS bigint INCREMENT 5 MINVALUE 10 MAXVALUE 100000 START 15 CACHE 3 CYCLE;
SELECT nextval('order_number'), nextval('order_number');
CREATE TABLE customer (
    id bigint GENERATED ALWAYS AS IDENTITY (START 100) PRIMARY KEY,
    name text COLLATE plain NOT NULL,
    email citext UNIQUE NULLS NOT DISTINCT,
    feels mood DEFAULT 'ok',
    place point3,
    tags hstore,
    extra jsonb DEFAULT '{"a;": [1, null]}' CHECK (extra IS NOT NULL),
    upper_name text GENERATED ALWAYS AS (upper(name)) STORED,
    name_length integer GENERATED ALWAYS AS (length(name)) VIRTUAL,
    "odd Column" positive DEFAULT 7,
    raw bytea STORAGE EXTERNAL COMPRESSION pglz,
    CONSTRAINT no_x CHECK (name <> 'x') NO INHERIT
) WITH (fillfactor = 70, autovacuum_enabled = false);
COMMENT ON TABLE customer IS 'people';
COMMENT ON COLUMN customer."odd Column" IS 'a column with a blank';
COMMENT ON CONSTRAINT no_x ON customer IS 'no x';
INSERT INTO customer (name, email, feels, place, tags, extra, "odd Column", raw)
    SELECT 'name ' || n || E'\t\n\\', 'Mail' || n || '@Example.org',
           (ARRAY['sad', 'ok', 'happy', 'it''s fine', 'ünïcode'])[1 + n % 5]::mood, ROW(n, n / 2.0, NULL)::point3,
           hstore('n', n::text), jsonb_build_object('n', n), n, decode(repeat(lpad(to_hex(n % 256), 2, '0'), 50), 'hex')
    FROM generate_series(1, 300) n;
INSERT INTO customer (name, email, extra) VALUES ('', NULL, '{}');
CREATE TABLE purchase (
    id integer GENERATED BY DEFAULT AS IDENTITY,
    number bigint DEFAULT nextval('order_number'),
    customer_id bigint NOT NULL REFERENCES customer ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED,
    during tstzrange,
    amount numeric(10, 2),
    tax numeric GENERATED ALWAYS AS (add_tax(amount)) STORED,
    PRIMARY KEY (id),
    EXCLUDE USING gist (during WITH &&) WHERE (amount > 0)
);
ALTER SEQUENCE order_number OWNED BY purchase.number;
ALTER TABLE purchase ADD CONSTRAINT later CHECK (amount < 1000000) NOT VALID;
ALTER TABLE purchase ADD CONSTRAINT not_enforced CHECK (amount > -5) NOT ENFORCED;
INSERT INTO purchase (customer_id, during, amount)
    SELECT 100 + n, tstzrange('2026-01-01'::timestamptz + n * interval '1 hour', '2026-01-01'::timestamptz + (n + 1) * interval '1 hour'), n
    FROM generate_series(1, 100) n;
CREATE UNLOGGED TABLE cache (key text PRIMARY KEY, value text);
INSERT INTO cache VALUES ('a', 'b');
CREATE TABLE parent (a integer NOT NULL, b text DEFAULT 'p');
CREATE TABLE child (c date DEFAULT '2026-02-03') INHERITS (parent);
ALTER TABLE child ALTER b SET DEFAULT 'c';
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (2, 'x', '2026-05-06'), (3, NULL, NULL);
CREATE TABLE typed OF point3 (PRIMARY KEY (x), z WITH OPTIONS DEFAULT 4);
INSERT INTO typed VALUES (1, 2, 3), ('NaN', 'Infinity', '-Infinity');
CREATE TABLE event (at date NOT NULL, kind text NOT NULL, payload text) PARTITION BY RANGE (at);
CREATE TABLE event_old PARTITION OF event FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
CREATE TABLE event_new PARTITION OF event FOR VALUES FROM ('2026-01-01') TO (MAXVALUE) PARTITION BY LIST (kind);
CREATE TABLE event_new_a PARTITION OF event_new FOR VALUES IN ('a', NULL);
CREATE TABLE event_new_rest PARTITION OF event_new DEFAULT;
CREATE TABLE spread (n integer) PARTITION BY HASH (n);
CREATE TABLE spread_0 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE spread_1 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO event SELECT '2025-12-01'::date + n, (ARRAY['a', 'b', 'c'])[1 + n % 3], repeat('p', n) FROM generate_series(1, 60) n;
INSERT INTO spread SELECT generate_series(1, 50);
CREATE TABLE "Strange ""name"";" ("select" integer, "ü" text);
INSERT INTO "Strange ""name"";" VALUES (1, E'\\.'), (2, ''), (3, NULL), (4, E'\\N'), (5, E'a\rb');
CREATE TABLE nothing ();
CREATE TABLE kinds (a xml, b money, c inet, d bit varying(9), e interval, f tsvector, g integer[][], h float_range, i float_ranges, j point, k timestamptz, l "char", m uuid, n label, o jsonpath, p pg_lsn);
INSERT INTO kinds VALUES ('<a>;</a>', '12.34', '10.0.0.0/8', B'101', '1 mon 2 days 03:04:05.6', 'a:1 b:2', '{{1,2},{3,NULL}}', '[1.5,2.5)',
    '{[1,2),[3,4)}', '(1,2)', '2026-07-08 09:10:11.121314+02', 'x', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'la''bel', '$.a[*] ? (@ > 1)', '16/B374D848');
INSERT INTO kinds DEFAULT VALUES;

-- Indexes and statistics
CREATE INDEX customer_name ON customer USING btree (lower(name) text_pattern_ops DESC NULLS LAST) INCLUDE (email) WHERE id > 5;
CREATE INDEX customer_tags ON customer USING gin (tags);
CREATE INDEX customer_backwards ON customer ("odd Column" backwards_int4);
CREATE INDEX event_kind ON event (kind);
CREATE INDEX kinds_words ON kinds USING gin (f);
CREATE INDEX purchase_brin ON purchase USING brin (amount) WITH (pages_per_range = 16);
CREATE INDEX cache_hash ON cache USING hash (value);
ALTER INDEX customer_name ALTER COLUMN 1 SET STATISTICS 55;
ALTER TABLE customer CLUSTER ON customer_pkey;
ALTER TABLE customer REPLICA IDENTITY FULL;
COMMENT ON INDEX customer_tags IS 'tags';
CREATE STATISTICS purchase_together (ndistinct, dependencies, mcv) ON customer_id, amount FROM purchase;
ALTER STATISTICS purchase_together SET STATISTICS 33;
COMMENT ON STATISTICS purchase_together IS 'go together';

-- Views, rules, triggers, policies
CREATE VIEW happy WITH (security_barrier) AS SELECT id, name FROM customer WHERE feels = 'happy' WITH CASCADED CHECK OPTION;
ALTER VIEW happy ALTER name SET DEFAULT 'new';
CREATE RECURSIVE VIEW counting (n) AS SELECT 1 UNION ALL SELECT n + 1 FROM counting WHERE n < 5;
CREATE MATERIALIZED VIEW sums AS SELECT customer_id, sum(amount) AS total FROM purchase GROUP BY customer_id;
CREATE UNIQUE INDEX sums_customer ON sums (customer_id);
CREATE MATERIALIZED VIEW empty_sums AS SELECT 1 AS one WITH NO DATA;
CREATE VIEW one AS SELECT 1 AS a;
CREATE VIEW two AS SELECT a FROM one;
CREATE OR REPLACE VIEW one AS SELECT 1 AS a WHERE NOT EXISTS (SELECT FROM customer WHERE name = 'no');
CREATE RULE happy_delete AS ON DELETE TO happy DO INSTEAD (UPDATE customer SET feels = 'sad' WHERE id = old.id; SELECT 1);
COMMENT ON RULE happy_delete ON happy IS 'only sad; not gone';
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN new; END$$;
CREATE TRIGGER touched BEFORE INSERT OR UPDATE OF name ON customer FOR EACH ROW WHEN (new.name IS NOT NULL) EXECUTE FUNCTION touch('a;', 'b''');
CREATE CONSTRAINT TRIGGER checked AFTER UPDATE ON purchase DEFERRABLE FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TRIGGER tabled AFTER INSERT ON event REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION touch();
ALTER TABLE customer DISABLE TRIGGER touched;
COMMENT ON TRIGGER touched ON customer IS 'touched';
ALTER TABLE customer ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON customer AS RESTRICTIVE FOR SELECT TO dump_reader, PUBLIC USING (name = CURRENT_USER);
CREATE POLICY new_rows ON customer FOR INSERT WITH CHECK (name <> '');
COMMENT ON POLICY own_rows ON customer IS 'own';
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN END$$;
CREATE EVENT TRIGGER watch_ddl ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'DROP TABLE') EXECUTE FUNCTION on_ddl();
ALTER EVENT TRIGGER watch_ddl ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER watch_ddl IS 'watches';

-- Foreign data
CREATE FOREIGN DATA WRAPPER nobody OPTIONS (debug 'true');
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE SERVER elsewhere TYPE 'x' VERSION '1' FOREIGN DATA WRAPPER nobody OPTIONS (host 'h;');
CREATE USER MAPPING FOR dump_owner SERVER elsewhere OPTIONS (secret 's''s');
CREATE FOREIGN TABLE outside (a integer OPTIONS (force_null 'false'), b text NOT NULL) SERVER files OPTIONS (filename '/nowhere.csv', format 'csv');
COMMENT ON FOREIGN TABLE outside IS 'in a file';
COMMENT ON SERVER elsewhere IS 'far';

-- Publications and subscriptions
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert');
CREATE PUBLICATION parts FOR TABLE purchase (id, amount) WHERE (amount > 1) WITH (publish_generated_columns = stored);
CREATE PUBLICATION whole FOR TABLES IN SCHEMA public, shop;
COMMENT ON PUBLICATION parts IS 'a part';
CREATE SUBSCRIPTION news CONNECTION 'host=nowhere password=''s s''' PUBLICATION everything, "other ones"
    WITH (connect = false, slot_name = 'slot', binary = true, streaming = off, origin = none);
COMMENT ON SUBSCRIPTION news IS 'from elsewhere';
ALTER SUBSCRIPTION news OWNER TO dump_owner;

CREATE ACCESS METHOD pile TYPE TABLE HANDLER heap_tableam_handler;
COMMENT ON ACCESS METHOD pile IS 'a heap';
CREATE TABLE piled (a integer) USING pile;

-- Large objects
SELECT lo_from_bytea(777001, decode(repeat('00ff5c2e0a', 5000), 'hex')), lo_from_bytea(777002, '');
COMMENT ON LARGE OBJECT 777001 IS 'large';
ALTER LARGE OBJECT 777002 OWNER TO dump_owner;
GRANT SELECT ON LARGE OBJECT 777001 TO dump_reader;

-- Owners and privileges
ALTER TABLE purchase OWNER TO dump_owner;
ALTER FUNCTION quoted() OWNER TO dump_owner;
GRANT USAGE ON SCHEMA shop TO dump_reader WITH GRANT OPTION;
GRANT SELECT (id, name), UPDATE (name) ON customer TO dump_reader;
GRANT INSERT, MAINTAIN ON purchase TO dump_reader;
GRANT EXECUTE ON PROCEDURE refill(integer) TO dump_reader;
REVOKE EXECUTE ON FUNCTION quoted() FROM PUBLIC;
GRANT USAGE ON SEQUENCE order_number TO PUBLIC;
GRANT USAGE ON TYPE mood TO dump_reader;
GRANT USAGE ON FOREIGN SERVER elsewhere TO dump_reader;
GRANT USAGE ON LANGUAGE plpgsql TO dump_reader;
REVOKE USAGE ON LANGUAGE spoken FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE dump_owner IN SCHEMA shop GRANT SELECT ON TABLES TO dump_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE dump_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE dump_owner GRANT SELECT ON LARGE OBJECTS TO dump_reader;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
COMMENT ON FUNCTION quoted() IS NULL;
COMMENT ON DATABASE postgres IS 'everything';
