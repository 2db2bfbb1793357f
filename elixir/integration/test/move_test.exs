Code.require_file("../../test/support/operating_system.ex", __DIR__)
Code.require_file("../../test/support/native_postgres.ex", __DIR__)

defmodule Integration.MoveTest do
  @moduledoc "A Repo whose database moves to an installed PostgreSQL while the application writes."
  # It runs tasks of Mix with the Repo's configuration.
  use ExUnit.Case, async: false

  alias Integration.{Account, Repo}
  alias PgliteEx.NativePostgres

  @moduletag mode: :shared
  @moduletag timeout: 120_000

  unless NativePostgres.programs() do
    @moduletag skip: "no PostgreSQL is installed below /usr/lib/postgresql"
  end

  defp start_repo!(options) do
    {:ok, repo} = Repo.start_link([name: nil, pool_size: 4] ++ options)
    repo
  end

  # Inserts by that pool until the database takes no more writes; the number of rows that were committed.
  defp write(repo, count \\ 0) do
    Repo.put_dynamic_repo(repo)

    try do
      Repo.insert!(%Account{email: "writer-#{count}@example.org"})
    rescue
      _error in [DBConnection.ConnectionError, Postgrex.Error] -> count
    else
      _account -> write(repo, count + 1)
    end
  end

  test "a Repo is configured anew at the switch, and finds everything that was committed before" do
    options = [database: "app", settings: [wal_level: "logical"]]
    server = start_supervised!({PgliteEx, options})
    Application.put_env(:integration, Repo, PgliteEx.connection_opts(server, pool_size: 2))
    Mix.Task.rerun("ecto.migrate", ["--quiet"])
    # The pool has connections that it loses at the switch.
    source = start_repo!(PgliteEx.connection_opts(server))
    native = NativePostgres.start!()
    url = "postgresql://postgres@127.0.0.1:#{native[:port]}/moved"
    writer = Task.async(fn -> write(source) end)
    test = self()

    switch = fn
      {:switched, _line} -> send(test, {:target, start_repo!(url: url)})
      {:progress, _line} -> :ok
    end

    assert {:ok, tables} = PgliteEx.move(server, url, on_progress: switch)
    committed = Task.await(writer, 60_000)
    assert_received {:target, target}
    assert Enum.all?(tables, & &1.same?)

    assert %{rows: ^committed} = Enum.find(tables, &(&1.table == "public.accounts"))
    assert committed > 0

    Repo.put_dynamic_repo(target)
    assert Repo.aggregate(Account, :count) == committed
    # The sequence goes on, and the migrations are known to have run.
    assert Repo.insert!(%Account{email: "after@example.org"}).id > committed
    assert %{rows: [[3]]} = Repo.query!("select count(*) from schema_migrations")
  end
end
