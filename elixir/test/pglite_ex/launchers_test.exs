defmodule PgliteEx.LaunchersTest do
  @moduledoc "The scripts that stand in for `pg_dump` and `psql`."
  use ExUnit.Case, async: true

  alias PgliteEx.{BadProgram, Launchers}

  @moduletag :tmp_dir

  # Prints its arguments, each in a line.
  @print ~S(printf '%s\n' "$@")

  setup %{tmp_dir: directory} do
    Launchers.install!(Path.join(directory, "bin"))
    program = BadProgram.write!(directory, @print)

    run = fn name, arguments ->
      env = [{"PGLITE_PORT", program}]
      path = Path.join([directory, "bin", name])
      {output, status} = System.cmd(path, arguments, env: env, stderr_to_stdout: true)
      {String.split(output, "\n", trim: true), status}
    end

    %{run: run}
  end

  test "pg_dump passes everything on", %{run: run} do
    arguments = ["--host", "localhost", "--dbname", "a b", "--file", "x.sql", "--schema-only"]
    assert run.("pg_dump", arguments) == {["dump", "--" | arguments], 0}
  end

  test "psql runs a file as Ecto asks for it", %{run: run} do
    arguments =
      ["--host", "/run/a b", "--dbname", "my app", "--username", "me", "--port", "5433"] ++
        ["--quiet", "--file", "priv/a b.sql", "-vON_ERROR_STOP=1", "--single-transaction"]

    expected =
      ["run", "--host=/run/a b", "--dbname=my app", "--username=me", "--port=5433", "--quiet"] ++
        ["--single-transaction", "--on-error=stop", "--", "priv/a b.sql"]

    assert run.("psql", arguments) == {expected, 0}
  end

  test "psql knows the short options, and goes on after errors unless it is told to stop",
       %{run: run} do
    expected = [
      "run",
      "--host=h",
      "--port=1",
      "--dbname=d",
      "-1",
      "--on-error=continue",
      "--",
      "f"
    ]

    assert run.("psql", ["-h", "h", "-p1", "-X", "-d", "d", "-1", "-ff"]) == {expected, 0}
  end

  test "psql runs a command, and prints its rows", %{run: run} do
    expected = ["run", "--rows", "--username=me", "--dbname=d", "--", "-"]
    assert run.("psql", ["-U", "me", "-c", "select 1", "d"]) == {expected, 0}
  end

  test "psql says what it does not do", %{run: run} do
    assert {[sentence], 2} = run.("psql", ["--host", "h"])
    assert sentence =~ "--file FILE"
    assert {[sentence], 2} = run.("psql", ["-v", "a=1", "-f", "x"])
    assert sentence =~ "a=1"
    assert {[sentence], 2} = run.("psql", ["-f"])
    assert sentence =~ "-f needs a value"
  end
end
