defmodule PgliteEx.DumpTest do
  @moduledoc "Dumps of running servers, and servers in which they are run."
  use ExUnit.Case, async: true

  alias PgliteEx.{Error, Servers, WireClient}

  @moduletag :tmp_dir

  defp values(server, sql), do: WireClient.rows!(server, sql, database: "app", user: "someone")

  test "a dump is run in another server, with all that was committed", %{tmp_dir: directory} do
    path = Path.join(directory, "app.sql")
    [origin, copy] = for _ <- 1..2, do: Servers.start!(database: "app", username: "someone")

    values(
      origin,
      "create table notes as select i, 'it''s ' || i as text from generate_series(1, 1000) i"
    )

    assert {:ok, %{bytes: bytes}} = PgliteEx.dump(origin, path)
    assert File.stat!(path).size == bytes
    assert {:ok, %{statements: statements}} = PgliteEx.load(copy, path)
    assert statements > 10
    digest = "select count(*), md5(string_agg(text, ',' order by i)) from notes"
    assert values(copy, digest) == values(origin, digest)
  end

  test "the options are those of pg_dump, and a branch is dumped as a server is", context do
    path = Path.join(context.tmp_dir, "app.sql")
    server = Servers.start!(database: "app", username: "someone")
    values(server, "create table notes as select 'secret' as text")
    {:ok, branch} = PgliteEx.branch(server)

    for origin <- [server, branch] do
      assert {:ok, _bytes} = PgliteEx.dump(origin, path, options: ["--schema-only", "--no-owner"])
      dump = File.read!(path)
      assert dump =~ "CREATE TABLE public.notes"
      refute dump =~ "secret" or dump =~ "OWNER TO"
    end

    assert {:ok, _bytes} = PgliteEx.dump(server, path, options: ["--format=custom"])
    assert <<"PGDMP", _rest::binary>> = File.read!(path)

    assert {:error, %Error{code: :invalid_options}} =
             PgliteEx.dump(server, path, options: ["--table=a\nb"])
  end

  test "an error has the words of pg_dump or the line of the file, and changes nothing",
       %{tmp_dir: directory} do
    path = Path.join(directory, "app.sql")
    server = Servers.start!(database: "app", username: "someone")

    assert {:error, %Error{code: "58030", message: message}} =
             PgliteEx.dump(server, path, options: ["--table=nothing"])

    assert message =~ "no matching tables were found"
    refute File.exists?(path)

    File.write!(path, "create table first ();\n\nselect missing;\n")
    assert {:error, %Error{code: "58030", message: message}} = PgliteEx.load(server, path)
    assert message =~ "app.sql:3: ERROR: column \"missing\" does not exist (42703)"
    tables = "select count(*) from pg_class where relname = 'first'"
    assert values(server, tables) == [["0"]]
    assert {:error, _error} = PgliteEx.load(server, path, transaction: false)
    assert values(server, tables) == [["1"]]
  end

  test "a server in isolated mode has no cluster for it", %{tmp_dir: directory} do
    server = Servers.start!(mode: :isolated)
    assert {:error, %Error{code: "0A000"}} = PgliteEx.dump(server, Path.join(directory, "x"))
    assert {:error, %Error{code: "0A000"}} = PgliteEx.load(server, Path.join(directory, "x"))
  end
end
