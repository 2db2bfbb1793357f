defmodule PgliteEx.AfterStartTest do
  @moduledoc "What is done after every start of the program, before clients are let in."
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias PgliteEx.{BadProgram, Error, OperatingSystem, Servers, WireClient}

  @moduletag :tmp_dir

  # How long a start may take on a machine that other tests use as well, in milliseconds.
  @patience 60_000

  defp query!(server, sql, parameters \\ []) do
    {client, _key} = WireClient.start_session!(server, parameters)
    {:ok, rows} = WireClient.query(client, sql)
    :gen_tcp.close(client)
    rows
  end

  # A function that reports what it has found, and from its second run on goes on when the test lets it.
  defp migration do
    {test, runs} = {self(), :counters.new(1, [])}

    fn connection_opts ->
      socket = WireClient.start_session_with!(connection_opts)
      sql = "select count(*) from pg_class where relname = 'notes'"
      {:ok, [[found]]} = WireClient.query(socket, sql)
      send(test, {:migrating, self(), found, connection_opts})
      :counters.add(runs, 1, 1)
      if :counters.get(runs, 1) > 1, do: receive(do: (:go -> :ok))
      {:ok, []} = WireClient.query(socket, "create table if not exists notes (text text)")
      :ok
    end
  end

  describe "database:" do
    test "is made with its owner before clients are let in" do
      server = Servers.start!(database: "app", username: "someone")
      opts = [database: "app", user: "someone"]

      sql =
        "select current_database(), pg_get_userbyid(datdba) from pg_database where datname = 'app'"

      assert [["app", "someone"]] = query!(server, sql, opts)
    end

    test "may have any name" do
      name = ~S(it's "a" \name)
      server = Servers.start!(database: name, username: name)

      assert [[^name, ^name]] =
               query!(server, "select current_database(), current_user",
                 database: name,
                 user: name
               )
    end

    test "is left as it is when it is there", %{tmp_dir: directory} do
      data = Path.join(directory, "data")
      server = Servers.start!(data: data, database: "app")
      query!(server, "create table notes as select 'kept' as text", database: "app")
      :ok = PgliteEx.stop(server)
      server = Servers.start!(data: data, database: "app")
      assert [["kept"]] = query!(server, "select text from notes", database: "app")
    end

    test "is found when the role and the databases that initdb made have other names", %{
      tmp_dir: directory
    } do
      options = [data: Path.join(directory, "data"), database: "app", username: "admin"]
      names = [database: "app", user: "admin"]
      server = Servers.start!(options)
      query!(server, "alter role postgres rename to boss", names)
      :ok = PgliteEx.stop(server)

      server = Servers.start!(options)
      query!(server, "alter database postgres rename to boss", names)
      query!(server, "alter database template1 allow_connections false", names)
      :ok = PgliteEx.stop(server)

      server = Servers.start!(options)
      assert [["admin"]] = query!(server, "select current_user", names)
      assert {:ok, %{files: _files}} = PgliteEx.backup(server, Path.join(directory, "backup.tar"))
    end

    test "that cannot be made is an error with PostgreSQL's reason" do
      Process.flag(:trap_exit, true)
      options = [database: "app", settings: [default_transaction_read_only: true]]

      assert {:error, {%Error{code: "25006", message: message}, _stacktrace}} =
               PgliteEx.start_link(options)

      assert message =~ ~s(create database "app" owner "postgres")
    end
  end

  describe "after_start:" do
    test "runs at every start, while clients wait: a cluster in memory has its tables again" do
      server = Servers.start!(after_start: migration())
      assert_received {:migrating, _migration, "0", _connection_opts}
      query!(server, "insert into notes values ('lost')")
      OperatingSystem.kill_program!(server)

      assert_receive {:migrating, migration, "0", _connection_opts}, @patience
      waiting = WireClient.connect!(server)
      :ok = :gen_tcp.send(waiting, WireClient.startup_packet())
      assert {:error, %Error{code: "57P03", message: message}} = PgliteEx.await_ready(server, 1)
      assert message =~ "its after_start: has not returned"
      # Requests are carried out, so that the function can make them.
      assert {:ok, %{"connections" => 1}} = PgliteEx.stats(server)
      # The one connection is the migration's.
      assert {:error, :timeout} = :gen_tcp.recv(waiting, 1, 100)
      send(migration, :go)
      assert {:ok, [_ | _]} = WireClient.receive_answer(waiting, @patience)
      assert {:ok, []} = WireClient.query(waiting, "select text from notes")
    end

    test "finds nothing to do in a cluster in a directory", %{tmp_dir: directory} do
      server = Servers.start!(data: Path.join(directory, "data"), after_start: migration())
      assert_received {:migrating, _migration, "0", _connection_opts}
      query!(server, "insert into notes values ('kept')")
      OperatingSystem.kill_program!(server)
      assert_receive {:migrating, migration, "1", _connection_opts}, @patience
      send(migration, :go)
      assert :ok = PgliteEx.await_ready(server, @patience)
      assert [["kept"]] = query!(server, "select text from notes")
    end

    test "has an address of its own, which is closed when it has returned" do
      place = Path.join(System.tmp_dir!(), "after_start-#{System.unique_integer([:positive])}")
      on_exit(fn -> File.rm_rf!(place) end)

      for listen <- [{"127.0.0.1", 0}, {"::1", 0}, {:local, place}] do
        server = Servers.start!(listen: listen, after_start: migration())
        assert_received {:migrating, _migration, "0", connection_opts}
        assert connection_opts != PgliteEx.connection_opts(server)
        assert Keyword.keys(connection_opts) == Keyword.keys(PgliteEx.connection_opts(server))
        assert_raise MatchError, fn -> WireClient.start_session_with!(connection_opts) end
      end
    end

    test "may be a function of a module, and its processes end with it" do
      server = Servers.start!(after_start: {__MODULE__, :start_process, [self()]})

      assert_receive {:process, process, connection_opts}
      assert %{hostname: "127.0.0.1", database: "postgres"} = Map.new(connection_opts)

      monitor = Process.monitor(process)
      assert_receive {:DOWN, ^monitor, :process, ^process, _reason}, 5_000
      assert [["1"]] = query!(server, "select 1")
    end

    for {how, function, message} <- [
          {"raises", quote(do: fn _opts -> raise "no such migration" end), "no such migration"},
          {"exits", quote(do: fn _opts -> exit(:no_reason) end), ":no_reason"},
          {"returns an error", quote(do: fn _opts -> {:error, :no_reason} end),
           "returned an error: :no_reason"},
          {"returns an exception",
           quote(do: fn _opts -> {:error, %RuntimeError{message: "no such migration"}} end),
           "returned an error: no such migration"},
          {"is linked to a process that crashes",
           quote(
             do: fn _opts ->
               spawn_link(fn -> exit(:no_reason) end) && Process.sleep(:infinity)
             end
           ), ":no_reason"}
        ] do
      test "that #{how} fails the start with the reason" do
        Process.flag(:trap_exit, true)

        assert {:error, {%Error{code: :after_start_failed, message: message}, _stacktrace}} =
                 PgliteEx.start_link(after_start: unquote(function))

        assert message =~ unquote(message)
      end
    end

    test "that does not return fails the start after its time" do
      Process.flag(:trap_exit, true)
      function = fn _connection_opts -> Process.sleep(:infinity) end

      assert {:error, {%Error{code: :after_start_failed, message: message}, _stacktrace}} =
               PgliteEx.start_link(after_start: function, after_start_timeout: 100)

      assert message =~ "has not returned within 100 ms"
    end

    test "has no address of its own where that is taken: the start fails with the reason" do
      Process.flag(:trap_exit, true)
      place = Path.join(System.tmp_dir!(), "after_start-#{System.unique_integer([:positive])}")
      on_exit(fn -> File.rm_rf!(place) end)
      path = Path.join(place, ".s.PGSQL.15432")
      File.mkdir_p!(place)
      {:ok, _taken} = :gen_tcp.listen(0, ifaddr: {:local, path})

      assert {:error, {%Error{code: :after_start_failed, message: message}, _stacktrace}} =
               PgliteEx.start_link(listen: {:local, place}, after_start: &Keyword.keys/1)

      assert message =~ "cannot listen on #{path}: address already in use"
    end

    test "that fails at every restart ends the server", %{tmp_dir: directory} do
      Process.flag(:trap_exit, true)
      runs = :counters.new(1, [])

      function = fn _connection_opts ->
        :counters.add(runs, 1, 1)
        if :counters.get(runs, 1) > 1, do: raise("no such migration")
      end

      # One that starts faster than a real one: it serves nobody, and ends at the order to stop.
      program = BadProgram.write!(directory, "hello; head -c 1 > /dev/null")
      {:ok, server} = PgliteEx.start_link(executable: program, after_start: function)
      OperatingSystem.kill_program!(server)
      assert_receive {:EXIT, ^server, :shutdown}, @patience
      # The first start, and ten restarts.
      assert :counters.get(runs, 1) >= 11
    end

    test "that fails at a restart is tried again" do
      runs = :counters.new(1, [])

      function = fn _connection_opts ->
        :counters.add(runs, 1, 1)
        if :counters.get(runs, 1) == 2, do: raise("no such migration")
      end

      server = Servers.start!(after_start: function)
      OperatingSystem.kill_program!(server)
      assert :ok = PgliteEx.await_ready(server, @patience)
      assert :counters.get(runs, 1) == 3
    end
  end

  describe "when a cluster in memory is lost" do
    test "the server ends, so that its supervisor notices" do
      server = Servers.start!()
      monitor = Process.monitor(server)
      OperatingSystem.kill_program!(server)
      assert_receive {:DOWN, ^monitor, :process, ^server, :shutdown}, 5_000
    end

    test "its supervisor starts it again, and what depends on it" do
      name = :"after_start_test_#{System.unique_integer([:positive])}"
      test = self()
      dependent = fn -> send(test, {:dependent, self(), PgliteEx.url(name)}) end
      children = [{PgliteEx, name: name}, {Agent, dependent}]

      start_supervised!(%{
        id: name,
        start: {Supervisor, :start_link, [children, [strategy: :rest_for_one]]}
      })

      assert_receive {:dependent, first, _url}
      monitor = Process.monitor(first)
      OperatingSystem.kill_program!(name)
      assert_receive {:DOWN, ^monitor, :process, ^first, :shutdown}, @patience
      assert_receive {:dependent, _second, url}, @patience
      assert url == PgliteEx.url(name)
      assert [["1"]] = query!(name, "select 1")
    end

    test "it goes on with an empty one, at the same address, if it is told to" do
      server = Servers.start!(on_data_loss: :restart)
      url = PgliteEx.url(server)
      query!(server, "create table notes (text text)")
      OperatingSystem.kill_program!(server)
      assert :ok = PgliteEx.await_ready(server, @patience)
      assert PgliteEx.url(server) == url
      assert [[nil]] = query!(server, "select to_regclass('notes')")
    end

    for {action, what} <- [restart: "goes on with a new cluster", stop: "stops"] do
      test "it is logged that the server #{what}" do
        {name, log} = log_of_a_kill(on_data_loss: unquote(action))
        assert log =~ ~r/server=#{name} .*its data is lost; the server #{unquote(what)}/
      end
    end

    test "it is not logged of a cluster in a directory, which has its data", %{tmp_dir: directory} do
      {name, log} = log_of_a_kill(data: Path.join(directory, "data"))
      assert log =~ "server=#{name} "
      refute log =~ ~r/server=#{name} .*its data is lost/
    end
  end

  # The name of a server whose program was killed, and what is logged until the server has ended. Servers
  # of other tests log as well.
  defp log_of_a_kill(options) do
    name = :"after_start_test_#{System.unique_integer([:positive])}"
    settings = [metadata: [:server], colors: [enabled: false]]

    log =
      capture_log(settings, fn ->
        server = Servers.start!([name: name] ++ options)
        monitor = Process.monitor(server)
        OperatingSystem.kill_program!(server)

        if options[:on_data_loss] != :stop do
          :ok = PgliteEx.await_ready(server, @patience)
          :ok = PgliteEx.stop(server)
        end

        assert_receive {:DOWN, ^monitor, :process, ^server, _reason}, @patience
      end)

    {name, log}
  end

  @doc false
  def start_process(connection_opts, test) do
    process = spawn_link(fn -> Process.sleep(:infinity) end)
    send(test, {:process, process, connection_opts})
  end
end
