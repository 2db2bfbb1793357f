Code.require_file("../../test/support/operating_system.ex", __DIR__)

defmodule Integration.OwnDatabaseTest do
  @moduledoc "The code of the guide \"An application's own database\", as it stands there."
  # It starts an application.
  use ExUnit.Case, async: false

  alias PgliteEx.OperatingSystem

  @moduletag mode: :shared
  @moduletag :tmp_dir
  @moduletag timeout: 120_000

  # Those of the guide.
  @compile {:no_warn_undefined, [MyApp.Application, MyApp.Backups, MyApp.Repo]}

  @guide "an_applications_own_database.md"
  @files Integration.Guide.files(@guide)

  # An application of this name with its own `priv`, and the guide's modules and configuration.
  setup_all do
    modules = for {"lib/" <> _name, code} <- @files, do: code
    @guide |> Integration.Guide.load_application!(%{}, modules) |> on_exit()
  end

  defp configure(name, environment) do
    config = Config.Reader.eval!(name, Map.fetch!(@files, name), env: environment)
    # As Mix merges files.
    before = Application.get_all_env(:my_app)
    Application.put_all_env(Config.Reader.merge([my_app: before], config))
  end

  defp start_application do
    {:ok, supervisor} = MyApp.Application.start(:normal, [])
    supervisor
  end

  defp kill_program do
    OperatingSystem.kill_program!(MyApp.Postgres)
    :ok = PgliteEx.await_ready(MyApp.Postgres, 60_000)
  end

  # A pool notices at its next query that a connection is gone.
  defp eventually(query, deadline \\ System.monotonic_time(:millisecond) + 30_000) do
    query.()
  rescue
    error in [DBConnection.ConnectionError, Postgrex.Error] ->
      if System.monotonic_time(:millisecond) > deadline, do: reraise(error, __STACKTRACE__)
      eventually(query, deadline)
  end

  defp notes, do: MyApp.Repo.query!("select text from notes order by id").rows

  test "keeps what was committed, over kills and restarts", %{tmp_dir: directory} do
    System.put_env("MY_APP_DATA", Path.join(directory, "pgdata"))
    configure("config/config.exs", :prod)
    configure("config/runtime.exs", :prod)

    supervisor = start_application()
    assert [["my_app"]] = MyApp.Repo.query!("select current_database()").rows
    MyApp.Repo.query!("insert into notes (text) values ('kept')")
    kill_program()
    assert eventually(&notes/0) == [["kept"]]
    Supervisor.stop(supervisor)

    supervisor = start_application()
    assert notes() == [["kept"]]
    {file, count} = MyApp.Backups.run(directory)
    assert count == 1
    Supervisor.stop(supervisor)

    # The application goes back to the backup.
    System.put_env("MY_APP_DATA", Path.join(directory, "restored"))
    :ok = PgliteEx.restore(file, Path.join(directory, "restored"))
    configure("config/runtime.exs", :prod)
    supervisor = start_application()
    assert notes() == [["kept"]]
    Supervisor.stop(supervisor)
  end

  test "has its tables again after a kill when it is in memory" do
    Application.delete_env(:my_app, MyApp.Postgres)
    configure("config/config.exs", :test)
    configure("config/runtime.exs", :test)

    supervisor = start_application()
    MyApp.Repo.query!("insert into notes (text) values ('lost')")
    kill_program()
    assert eventually(&notes/0) == []
    Supervisor.stop(supervisor)
  end

  test "is in the project in development" do
    Application.delete_env(:my_app, MyApp.Postgres)
    configure("config/config.exs", :dev)
    configure("config/dev.exs", :dev)
    options = Application.fetch_env!(:my_app, MyApp.Postgres)
    assert Path.basename(options[:data]) == "pgdata"
    assert options[:database] == "my_app"
  end
end
