defmodule PgliteEx.ExtensionsTest do
  @moduledoc "Extensions of packages beside PGlite, and those of the user's own."
  use ExUnit.Case, async: true

  alias PgliteEx.{Servers, WireClient}

  @moduletag :tmp_dir

  @directory "share/postgresql/extension/"

  defp values(server, sql), do: WireClient.rows!(server, sql)

  defp bundle!(directory, files) do
    path = Path.join(directory, "own.tar.gz")
    files = for {name, content} <- files, do: {~c"#{@directory}#{name}", content}
    :ok = :erl_tar.create(path, files, [:compressed])
    path
  end

  test "vectors are stored, and found by an index" do
    server = Servers.start!()
    values(server, "create extension vector")

    values(
      server,
      "create table items as select n, array[n, n]::vector(2) v from generate_series(1, 100) n"
    )

    values(server, "create index on items using hnsw (v vector_l2_ops)")
    assert [["7"]] = values(server, "select n from items order by v <-> '[7, 7]' limit 1")
  end

  test "an extension of one's own is offered in every cluster", %{tmp_dir: directory} do
    path =
      bundle!(directory, [
        {"own.control", "default_version = '1.0'\n"},
        {"own--1.0.sql", "create function own_answer() returns int language sql return 42;"}
      ])

    server = Servers.start!(extensions: [path])
    values(server, "create extension own")
    assert [["42"]] = values(server, "select own_answer()")
    {:ok, branch} = PgliteEx.branch(server)
    assert [["42"]] = values(branch, "select own_answer()")
  end

  test "what is wrong with one is the reason why the server does not start", %{tmp_dir: directory} do
    path = bundle!(directory, [{"own--1.0.sql", ""}])
    Process.flag(:trap_exit, true)
    assert {:error, reason} = PgliteEx.start_link(extensions: [path])
    assert inspect(reason) =~ "own.tar.gz cannot be used: it has no control file"
  end
end
