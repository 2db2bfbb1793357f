defmodule Integration.FirstHourTest do
  @moduledoc "Applications made from the guides alone, with Mix as a user runs it."
  use ExUnit.Case, async: false

  import Integration.Guide, only: [files: 1, text: 1, mix: 2, mix: 3, mix!: 2, mix!: 3, write!: 2]

  @moduletag mode: :shared
  @moduletag :tmp_dir
  @moduletag timeout: 300_000

  @migration """
  defmodule MyApp.Repo.Migrations.CreateNotes do
    use Ecto.Migration

    def change do
      create table(:notes) do
        add :text, :text, null: false
      end

      create unique_index(:notes, [:text])
    end
  end
  """

  # A port of the test's own instead of the one in the guides, where a server may be.
  defp with_free_port(files) do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    {port, Map.new(files, fn {name, text} -> {name, String.replace(text, "5433", "#{port}")} end)}
  end

  defp write_migration!(project) do
    [file] = Path.wildcard(Path.join(project, "priv/repo/migrations/*_create_notes.exs"))
    File.write!(file, @migration)
  end

  defp query!(project, sql) do
    mix!(project, ["run", "-e", "IO.inspect(MyApp.Repo.query!(#{inspect(sql)}).rows)"])
  end

  test "the guide \"Ecto in five minutes\", and \"Tests without a sandbox\" on top of it",
       %{tmp_dir: project} do
    {_port, files} = with_free_port(files("ecto_in_five_minutes.md"))
    write!(project, files)

    # No server runs yet.
    mix!(project, ["ecto.gen.migration", "create_notes"])
    write_migration!(project)
    assert mix!(project, ["ecto.migrate"]) =~ "create table notes"
    query!(project, "insert into notes (text) values ('kept')")
    assert query!(project, "select text from notes") =~ ~s([["kept"]])
    assert mix!(project, ["ecto.rollback"]) =~ "drop table notes"
    assert mix!(project, ["ecto.migrations"]) =~ "down"
    assert mix!(project, ["ecto.reset"]) =~ "create table notes"
    assert query!(project, "select text from notes") =~ "[]"

    # Without the aliases there is a sentence, and nothing else.
    {output, status} =
      mix(project, ["do", "app.config", "+", "run", "--no-start", "-e", no_alias()])

    assert status != 0
    assert output =~ "the server MyApp.Postgres does not run"
    refute output =~ "gen_server"

    write_tests!(project)
    assert mix!(project, ["test"], [{"MIX_ENV", "test"}]) =~ "2 tests, 0 failures"

    # What a failed test leaves can be looked at when the tests have ended.
    write_failing_test!(project)
    {output, 2} = mix(project, ["test", "test/my_app/failing_test.exs"], [{"MIX_ENV", "test"}])
    assert [_, command] = Regex.run(~r/MIX_ENV=test (mix pglite_ex.server .+)/, output)
    {_port, output} = start!(project, "exec " <> command, "postgresql://", ~c"test")
    [url] = Regex.run(~r/postgresql:\S+/, output)
    assert {"evidence\n", 0} = System.cmd("psql", [url, "-Atc", "select text from notes"])

    # The cache is that of all tests.
    [name] = Regex.run(~r/failed_[0-9a-f]+/, command)
    server = start_supervised!({PgliteEx, mode: :isolated})
    assert :ok = PgliteEx.Template.drop(server, name)
  end

  defp write_failing_test!(project) do
    File.write!(Path.join(project, "test/my_app/failing_test.exs"), """
    defmodule MyApp.FailingTest do
      use PgliteEx.Case, server: MyApp.TestPostgres, repo: MyApp.Repo, on_failure: :keep

      test "fails" do
        MyApp.Repo.query!("insert into notes (text) values ('evidence')")
        assert MyApp.Repo.query!("select 1").rows == []
      end
    end
    """)
  end

  # What `mix phx.new` and `mix phx.gen.auth` generate, as far as it has to do with the database, with the changes
  # of the guide. The web half needs packages that have nothing to do with this library.
  test "the guide \"Phoenix without a database server\"", %{tmp_dir: project} do
    {port, guide} = with_free_port(files("phoenix.md"))
    write!(project, phoenix(guide))

    assert mix!(project, ["ecto.setup"]) =~ "create table users"
    assert query!(project, "select email from users") =~ ~s([["seed@example.com"]])
    assert mix!(project, ["test"], [{"MIX_ENV", "test"}]) =~ "4 tests, 0 failures"

    # One name changes, and the same tests have branches.
    [command] = Regex.run(~r/^\$ (sed .+)$/m, text("phoenix.md"), capture: :all_but_first)
    assert {"", 0} = System.cmd("sh", ["-c", command], cd: project, stderr_to_stdout: true)
    write_branch_tests!(project)
    assert mix!(project, ["test"], [{"MIX_ENV", "test"}]) =~ "7 tests, 0 failures"

    # While the application runs in another terminal, tasks use its server.
    # It ends with its standard input.
    command = "mix run -e 'IO.puts(:running); IO.read(:eof)'"
    {application, _output} = start!(project, command, "running", false)
    assert mix!(project, ["ecto.rollback"]) =~ "drop table users"
    assert mix!(project, ["ecto.migrate"]) =~ "create table users"
    url = "postgresql://postgres@127.0.0.1:#{port}/my_app_dev"
    assert {"0\n", 0} = System.cmd("psql", [url, "-Atc", "select count(*) from users"])
    Port.close(application)
  end

  # Runs a command until its output has a text; it ends with the test.
  defp start!(project, command, text, mix_env) do
    build = Path.join(project, "_build")

    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        args: ["-c", command],
        cd: project,
        env: [{~c"MIX_ENV", mix_env}, {~c"MIX_BUILD_PATH", String.to_charlist(build)}]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    on_exit(fn -> System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true) end)
    await_output(port, "", text)
  end

  defp await_output(port, before, text) do
    assert_receive {^port, {:data, more}}, 60_000
    output = before <> more
    # The whole line.
    if output =~ ~r/#{text}.*\n/, do: {port, output}, else: await_output(port, output, text)
  end

  defp phoenix(guide) do
    children = String.replace(guide["lib/my_app/application.ex"], ~r/ +MyAppWeb.*\n| +# …\n/, "")

    guide
    |> Map.take(["mix.exs", "lib/my_app/repo.ex"])
    |> Map.merge(%{
      "config/config.exs" => """
      import Config
      config :my_app, ecto_repos: [MyApp.Repo]
      import_config "\#{config_env()}.exs"
      """,
      "config/dev.exs" => """
      import Config

      config :my_app, MyApp.Repo,
        username: "postgres",
        password: "postgres",
        hostname: "localhost",
        database: "my_app_dev",
        stacktrace: true,
        show_sensitive_data_on_connection_error: true,
        pool_size: 10

      #{guide["config/dev.exs"]}
      """,
      "config/test.exs" => """
      import Config

      config :my_app, MyApp.Repo,
        username: "postgres",
        password: "postgres",
        hostname: "localhost",
        database: "my_app_test\#{System.get_env("MIX_TEST_PARTITION")}",
        pool: Ecto.Adapters.SQL.Sandbox,
        pool_size: System.schedulers_online() * 2

      config :logger, level: :warning

      #{guide["config/test.exs"]}
      """,
      "lib/my_app/application.ex" => """
      defmodule MyApp.Application do
        use Application

        @impl true
        def start(_type, _args) do
      #{children}
          opts = [strategy: :one_for_one, name: MyApp.Supervisor]
          Supervisor.start_link(children, opts)
        end
      end
      """,
      "priv/repo/seeds.exs" =>
        ~s|MyApp.Repo.query!("insert into users (email) values ('seed@example.com')")|,
      "priv/repo/migrations/20260101000000_create_users_auth_tables.exs" => """
      defmodule MyApp.Repo.Migrations.CreateUsersAuthTables do
        use Ecto.Migration

        def change do
          execute "CREATE EXTENSION IF NOT EXISTS citext", ""

          create table(:users) do
            add :email, :citext, null: false
          end

          create unique_index(:users, [:email])

          create table(:users_tokens) do
            add :user_id, references(:users, on_delete: :delete_all), null: false
            add :token, :binary, null: false
          end

          create index(:users_tokens, [:user_id])
        end
      end
      """,
      "test/test_helper.exs" => """
      #{files("tests_without_a_sandbox.md")["test/test_helper.exs"]}
      Ecto.Adapters.SQL.Sandbox.mode(MyApp.Repo, :manual)
      """,
      "test/my_app/commits_test.exs" => """
      defmodule MyApp.CommitsTest do
        use MyApp.DataCase, async: true
        use PgliteEx.Case, server: MyApp.TestPostgres, repo: MyApp.Repo

        test "a commit is one" do
          Repo.query!("insert into users (email) values ('a@example.com')")
          {:error, :rolled_back} = Repo.transaction(fn -> Repo.rollback(:rolled_back) end)
          # In a sandbox the insert would have given its transaction an id.
          assert [[nil]] = Repo.query!("select pg_current_xact_id_if_assigned()").rows
          repo = Repo.get_dynamic_repo()

          task =
            Task.async(fn ->
              Repo.put_dynamic_repo(repo)
              Repo.query!("select email from users").rows
            end)

          assert Task.await(task) == [["a@example.com"]]
        end
      end
      """,
      "test/support/data_case.ex" => """
      defmodule MyApp.DataCase do
        use ExUnit.CaseTemplate

        using do
          quote do
            alias MyApp.Repo
          end
        end

        setup tags do
          MyApp.DataCase.setup_sandbox(tags)
          :ok
        end

        def setup_sandbox(tags) do
          pid = Ecto.Adapters.SQL.Sandbox.start_owner!(MyApp.Repo, shared: not tags[:async])
          on_exit(fn -> Ecto.Adapters.SQL.Sandbox.stop_owner(pid) end)
        end
      end
      """,
      "test/my_app/users_test.exs" => """
      defmodule MyApp.UsersTest do
        use MyApp.DataCase, async: true

        for n <- 1..3 do
          test "an address is unique in test \#{n}" do
            Repo.query!("insert into users (email) values ('a@example.com')")
            task = Task.async(fn -> Repo.query!("select email from users").rows end)
            assert Task.await(task) == [["a@example.com"]]
            assert {:error, _taken} = Repo.query("insert into users (email) values ('A@EXAMPLE.com')")
          end
        end
      end
      """
    })
  end

  defp write_branch_tests!(project) do
    File.write!(Path.join(project, "test/my_app/branches_test.exs"), """
    defmodule MyApp.BranchesTest do
      use MyApp.DataCase, async: true

      for n <- 1..2 do
        test "processes of test \#{n} commit one by one" do
          Repo.transaction(fn ->
            Repo.query!("insert into users (email) values ('a@example.com')")
            # It would wait for the test's only connection in Ecto's sandbox.
            task = Task.async(fn -> Repo.query!("select email from users").rows end)
            assert Task.await(task) == []
          end)

          assert Task.await(Task.async(fn -> Repo.query!("select email from users").rows end)) == [["a@example.com"]]
        end
      end
    end

    defmodule MyApp.SharedBranchTest do
      use MyApp.DataCase, async: false

      test "processes that nobody knows use the branch of a test that is not async" do
        Repo.query!("insert into users (email) values ('a@example.com')")
        test = self()
        spawn_link(fn -> send(test, Repo.query!("select email from users").rows) end)
        assert_receive [["a@example.com"]], 10_000
      end
    end
    """)
  end

  # What `mix ecto.create` does, without the alias.
  defp no_alias, do: "Mix.Tasks.Ecto.Create.run([])"

  defp write_tests!(project) do
    for {name, text} <- files("tests_without_a_sandbox.md") do
      path = Path.join(project, name)
      File.mkdir_p!(Path.dirname(path))
      File.write!(path, text)
    end

    File.write!(Path.join(project, "test/my_app/notes_test.exs"), """
    defmodule MyApp.NotesTest do
      use MyApp.DataCase, async: true

      # Before the database of the test is asked for anything.
      setup do
        MyApp.Repo.query!("insert into notes (text) values ('of this test')")
        :ok
      end

      test "notes are those of the test" do
        assert [["of this test"]] = MyApp.Repo.query!("select text from notes").rows
      end
    end
    """)
  end
end
