defmodule PgliteEx.LaunchersTest do
  @moduledoc "The scripts named `pg_dump` and `psql`, which `mix ecto.dump` and `mix ecto.load` call."
  use ExUnit.Case, async: true

  alias PgliteEx.{Launchers, Servers, WireClient}

  @moduletag :tmp_dir

  setup %{tmp_dir: directory} do
    bin = Path.join(directory, "priv/bin")
    Launchers.install!(bin)
    server = Servers.start!(database: "app")
    %{bin: bin, server: server, url: PgliteEx.url(server)}
  end

  defp run(program, arguments, environment \\ []),
    do: System.cmd(program, arguments, stderr_to_stdout: true, env: environment)

  test "psql ends with PostgreSQL's exit statuses", context do
    %{url: url, tmp_dir: directory, bin: bin} = context
    file = Path.join(directory, "file.sql")
    File.write!(file, "select missing; create table after_it ();")
    psql = &run(Path.join(bin, "psql"), &1)
    tables = "select count(*) from pg_class where relname = 'after_it'"

    assert {output, 3} = psql.(["-v", "ON_ERROR_STOP=1", "-f", file, url])
    assert output =~ "column \"missing\" does not exist"
    assert {"0\n", 0} = psql.([url, "-c", tables])
    assert {_output, 0} = psql.([url, "-f", file])
    assert {"1\n", 0} = psql.([url, "-c", tables])
    assert {_output, 1} = psql.([url, "-c", "select missing"])
    nobody = "postgres://postgres@127.0.0.1:1/app"
    assert {_output, status} = psql.(["-f", file, nobody])
    assert status not in [0, 3]

    for arguments <- [
          [url],
          ["-f", file, "-c", "x"],
          ["-f", file, "-f", file],
          ["-v", "a=1"],
          ["-f"]
        ] do
      assert {"psql of pglite-port: " <> _sentence, 2} = psql.(arguments)
    end
  end

  test "psql takes the database and the user by their places", context do
    {:ok, uri} = URI.new(context.url)
    environment = [{"PGHOST", uri.host}, {"PGPORT", "#{uri.port}"}]
    psql = &run(Path.join(context.bin, "psql"), &1, environment)
    query = "select current_database(), session_user"
    assert {"app|postgres\n", 0} = psql.(["-X", "-c", query, "app", "postgres"])
    assert {"app|postgres\n", 0} = psql.(["-dapp", "-Upostgres", "--command=#{query}"])
    assert {"app|postgres\n", 0} = psql.(["-qtAc", query, "app", "postgres"])
  end

  test "a program that is not there is named", %{bin: bin} do
    for name <- ["psql", "pg_dump"] do
      assert {output, 2} = run(Path.join(bin, name), [], [{"PGLITE_PORT", "/nowhere"}])
      assert output =~ "#{name} of pglite-port: there is no program /nowhere"
    end
  end

  test "a script finds the program beside it, also by a link to it", context do
    %{bin: bin, tmp_dir: directory, server: server, url: url} = context
    WireClient.rows!(server, "create table notes ()", database: "app")
    # As in priv: the program is above the scripts, and PGlite's files are beside the program.
    File.ln_s!(System.fetch_env!("PGLITE_PORT"), Path.join(directory, "priv/pglite-port"))
    link = Path.join(directory, "pg_dump")
    File.ln_s!(Path.join(bin, "pg_dump"), link)
    own = [{"PGLITE_PORT", nil}]
    assert {dump, 0} = run(link, [url, "--schema-only"], own)
    assert dump =~ "CREATE TABLE public.notes"
    assert {"1\n", 0} = run(Path.join(bin, "psql"), [url, "-c", "select 1"], own)
  end
end
