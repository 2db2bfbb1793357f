defmodule Integration.EctoTasksTest do
  @moduledoc "Ecto's Mix tasks for a repo whose server has a name."
  # The server's name, and the shell of Mix, are the VM's.
  use ExUnit.Case, async: false

  alias Integration.{NamedPostgres, NamedRepo}

  @moduletag mode: :shared
  @moduletag :tmp_dir

  @repo ["-r", "Integration.NamedRepo"]

  setup do
    Mix.shell(Mix.Shell.Process)
    # As Mix does not.
    Process.flag(:trap_exit, true)

    on_exit(fn ->
      Mix.shell(Mix.Shell.IO)
      Application.delete_env(:integration, NamedPostgres)
    end)
  end

  describe "without a server" do
    test "those that need one end with a sentence" do
      sentence = ~r/the server Integration.NamedPostgres does not run: .*--and TASK/

      for task <- ["ecto.create", "ecto.drop", "ecto.migrate", "ecto.rollback", "ecto.migrations"] do
        error = catch_error(Mix.Task.rerun(task, @repo ++ options(task)))
        assert Exception.message(error) =~ sentence
        # Printed by Mix without a stack trace.
        assert error.mix == 1
      end
    end

    test "a migration is made", %{tmp_dir: directory} do
      Mix.Task.rerun("ecto.gen.migration", @repo ++ ["--migrations-path", directory, "add_cats"])
      assert [_file] = Path.wildcard(Path.join(directory, "*_add_cats.exs"))
    end
  end

  test "beside a server they work on what it keeps", %{tmp_dir: directory} do
    data = Path.join(directory, "pgdata")
    Application.put_env(:integration, NamedPostgres, data: data, database: "kept")
    run_beside(["ecto.drop", "ecto.create"])
    run_beside(["ecto.migrate"])
    run_beside(["ecto.rollback"])

    assert_received {:mix_shell, :info,
                     ["The database for Integration.NamedRepo has been dropped"]}

    assert_received {:mix_shell, :info,
                     ["The database for Integration.NamedRepo has been created"]}

    {:ok, server} = PgliteEx.start_link(name: NamedPostgres, data: data, database: "kept")
    {:ok, repo} = NamedRepo.start_link()
    # Of three, one was rolled back.
    assert %{rows: [[2]]} = NamedRepo.query!("select count(*) from schema_migrations")
    assert %{rows: [["kept"]]} = NamedRepo.query!("select current_database()")
    Supervisor.stop(repo)
    PgliteEx.stop(server)
  end

  test "the structure is dumped and loaded without an installed PostgreSQL", %{tmp_dir: directory} do
    path = System.get_env("PATH")
    on_exit(fn -> System.put_env("PATH", path) end)
    bin = Path.join(directory, "bin")
    PgliteEx.Launchers.install!(bin)
    System.put_env("PATH", "#{bin}:#{path}")
    [first, second] = for name <- ["first", "second"], do: Path.join(directory, name)
    structure = Path.join(directory, "structure.sql")

    configure = &Application.put_env(:integration, NamedPostgres, data: &1, database: "kept")
    configure.(first)
    run_beside(["ecto.migrate"])
    run_beside([{"ecto.dump", ["--dump-path", structure]}])
    assert File.read!(structure) =~ "CREATE TABLE public.accounts"

    configure.(second)
    run_beside([{"ecto.load", ["--dump-path", structure, "--force", "--quiet"]}])
    {:ok, server} = PgliteEx.start_link(name: NamedPostgres, data: second, database: "kept")
    {:ok, repo} = NamedRepo.start_link()
    assert %{rows: [[3]]} = NamedRepo.query!("select count(*) from schema_migrations")
    assert %{rows: [[0]]} = NamedRepo.query!("select count(*) from accounts")
    Supervisor.stop(repo)
    PgliteEx.stop(server)
  end

  defp run_beside(tasks) do
    tasks = for task <- tasks, do: if(is_binary(task), do: {task, options(task)}, else: task)
    for {task, _options} <- tasks, do: Mix.Task.reenable(task)

    arguments =
      Enum.flat_map(tasks, fn {task, options} -> ["--and", task] ++ @repo ++ options end)

    Mix.Task.rerun("pglite_ex.server", ["Integration.NamedPostgres" | arguments])
  end

  defp options("ecto.drop"), do: ["--force"]
  defp options(task) when task in ["ecto.migrate", "ecto.rollback"], do: ["--quiet"]
  defp options(_task), do: []
end
