defmodule PgliteEx.TemplateTest do
  use ExUnit.Case, async: true

  alias PgliteEx.{BadProgram, Servers, Template, WireClient}

  @moduletag :tmp_dir

  describe "a key" do
    test "is the same for the same files, wherever they are", %{tmp_dir: directory} do
      [one, other] = for name <- ["one", "other"], do: Path.join(directory, name)

      for directory <- [one, other] do
        File.mkdir_p!(Path.join(directory, "nested"))
        File.write!(Path.join(directory, "1_create.exs"), "create")
        File.write!(Path.join(directory, "nested/2_alter.exs"), "alter")
      end

      assert Template.key(one) == Template.key(other)
      assert Template.key([one, other]) != Template.key(one)
      assert Template.key(one, :salt) != Template.key(one)
    end

    test "changes with a name and with a content", %{tmp_dir: directory} do
      path = Path.join(directory, "1_create.exs")
      File.write!(path, "create")
      before = Template.key(directory)

      File.write!(path, "create more")
      assert Template.key(directory) != before

      File.write!(path, "create")
      assert Template.key(directory) == before
      File.rename!(path, Path.join(directory, "2_create.exs"))
      assert Template.key(directory) != before
    end
  end

  describe "a key covers" do
    test "a single file by its name and content", %{tmp_dir: directory} do
      path = Path.join(directory, "schema.sql")
      File.write!(path, "create")
      before = Template.key(path)
      File.write!(path, "create more")
      assert Template.key(path) != before
      assert Template.key([path, directory]) != Template.key(path)
    end

    test "nothing that is not there", %{tmp_dir: directory} do
      assert_raise ArgumentError, ~r"#{directory}/no/migrations.*no such file", fn ->
        Template.key([directory, Path.join(directory, "no/migrations")])
      end
    end
  end

  # A program that sends each half of a ReadyForQuery in a frame of its own, the second when the
  # first has been dealt with: half a window of bytes before it makes the library say so.
  @half_by_half """
  hello
  while set -- $(head -c 9 | od -An -tu1) && [ $# = 9 ]; do
    head -c $(($3 * 256 + $4 - 5)) > /dev/null
    case $5:$9 in
      #{?D}:1) frame 1 ;;
      #{?W}:1) frame 2 ;;
      #{?D}:2) frame 3 ;;
      #{?W}:2) frame 4 ;;
      #{?D}:3) frame 7 ;;
      #{?W}:3) frame 8 ;;
      # The server has been asked for its templates, the program that makes one to freeze.
      #{?Q}:1) frame 5 ;;
      #{?Q}:4) frame 6 ;;
      #{?Q}:*) exit 0 ;;
    esac
  done
  """

  test "a template is made also when a ReadyForQuery is split over two frames",
       %{tmp_dir: directory} do
    notice = ["N", <<131_071 - 25::32>>, :binary.copy(<<0>>, 131_067 - 25)]

    # One more transaction in each session, and none is open.
    row = fn id ->
      ["D", <<24::32, 3::16, 1::32, ?0 + id, 4::32, "conf", 1::32, "0">>]
    end

    answers = fn ids ->
      for id <- ids,
          half <- [[notice, row.(id), "Z", 0, 0], [0, 5, "I"]],
          do: {:data, id, IO.iodata_to_binary(half)}
    end

    frames = answers.(1..2) ++ [{:reply, 1, :ok, []}, {:reply, 4, :ok, []}] ++ answers.([3])
    server = Servers.start!(executable: BadProgram.write!(directory, @half_by_half, frames))

    prepared =
      Task.async(fn ->
        result = PgliteEx.prepare(server, "split", fn _ -> :ok end)
        {result, Process.info(self(), :messages)}
      end)

    # And nothing of the sessions in which it was made is left in the mailbox.
    assert {:ok, {{:ok, :built}, {:messages, []}}} =
             Task.yield(prepared, 10_000) || Task.shutdown(prepared)
  end

  test "a template whose server cannot be started is an error with the program's last words",
       %{tmp_dir: directory} do
    program = """
    if mkdir "#{directory}/started" 2> /dev/null; then
      hello; head -c 20 > /dev/null; frame 1; head -c 1 > /dev/null
    else
      echo 'no room for another' >&2; exit 1
    fi
    """

    program = BadProgram.write!(directory, program, [{:reply, 1, :ok, []}])
    server = Servers.start!(executable: program)
    assert {:error, error} = PgliteEx.prepare(server, "impossible", fn _ -> :ok end)
    assert %PgliteEx.Error{code: :program_exited} = error
    assert error.message =~ "no room for another"
  end

  describe "a template" do
    @describetag :freeze

    setup %{test: test} do
      # The store is the user's; names of other runs must not meet.
      name = "pglite_ex_test_#{:erlang.phash2({test, System.pid()})}"
      server = Servers.start!(mode: :isolated, template: name)
      on_exit(fn -> drop(name) end)
      %{server: server, name: name}
    end

    test "is what a shared cluster begins as", %{server: server, name: name} do
      create = fn connection_opts ->
        client = WireClient.start_session_with!(connection_opts)
        {:ok, []} = WireClient.query(client, "create table kept as select 'kept' as what")
        :gen_tcp.close(client)
      end

      {:ok, :built} = PgliteEx.prepare(server, name, create)
      shared = Servers.start!(template: name, database: name)
      assert PgliteEx.connection_opts(shared)[:database] == name

      {one, _key} = WireClient.start_session!(shared, database: name)
      assert {:ok, []} = WireClient.query(one, "insert into kept values ('shared')")
      {other, _key} = WireClient.start_session!(shared, database: name)
      assert {:ok, [["kept"], ["shared"]]} = WireClient.query(other, "select what from kept")
    end

    test "is a raw connection's cluster, frozen: listed, cloned, dropped",
         %{server: server, name: name} do
      connection = start_session!(server)
      query!(connection, "create table kept as select 'kept' as what")
      assert :ok = PgliteEx.freeze(connection, name, key: "the key")
      # The frozen connection goes on, and its further changes are its own.
      query!(connection, "drop table kept")

      assert {:ok, templates} = Template.list(server)
      assert %{key: "the key", size: size} = Enum.find(templates, &(&1.name == name))
      assert size > 1_000_000

      {clone, _key} = WireClient.start_session!(server, database: name)
      assert {:ok, [["kept"]]} = WireClient.query(clone, "select what from kept")

      assert :ok = Template.drop(server, name)
      assert {:error, %PgliteEx.Error{}} = Template.drop(server, name)
      assert {:ok, templates} = Template.list(server)
      refute Enum.any?(templates, &(&1.name == name))
    end

    test "is not made of a cluster in which its function has changed nothing",
         %{server: server, name: name} do
      elsewhere = Servers.start!()

      for connect_to <- [nil, elsewhere, :given] do
        look = fn connection_opts ->
          options =
            if connect_to == elsewhere,
              do: PgliteEx.connection_opts(elsewhere),
              else: connection_opts

          if connect_to do
            socket = WireClient.start_session_with!(options)
            {:ok, _rows} = WireClient.query(socket, "select 1")
            :gen_tcp.close(socket)
          end
        end

        assert {:error, %PgliteEx.Error{code: :prepare_failed, message: message}} =
                 PgliteEx.prepare(server, name, look)

        assert message =~ "changed nothing in the database of its connection options"
        assert {:ok, templates} = Template.list(server)
        refute Enum.any?(templates, &(&1.name == name))
      end
    end

    test "is made of settings alone", %{server: server, name: name} do
      assert {:ok, :built} =
               PgliteEx.prepare(server, name, sql("alter system set work_mem = '1MB'"))

      {clone, _key} = WireClient.start_session!(server, database: name)
      assert {:ok, [["1MB"]]} = WireClient.query(clone, "show work_mem")
    end

    test "is not made while its function has a transaction open", %{server: server, name: name} do
      test = self()

      leave_open = fn connection_opts ->
        socket = WireClient.start_session_with!(connection_opts)
        {:ok, []} = WireClient.query(socket, "create table forgotten (n int)")
        {:ok, []} = WireClient.query(socket, "begin")
        {:ok, []} = WireClient.query(socket, "insert into forgotten values (1)")
        # It outlives the function's process, as a connection of a driver can.
        :ok = :gen_tcp.controlling_process(socket, test)
      end

      assert {:error, %PgliteEx.Error{code: :prepare_failed, message: message}} =
               PgliteEx.prepare(server, name, leave_open)

      assert message =~ "left a transaction open"
    end

    @tag :prepare
    test "is built again when its function has changed, in code or in a value",
         %{server: server, name: name} do
      values = for n <- [1, 1, 2], do: prepare_value(server, name, n)
      assert [:built, :reused, :built] = values

      # As those of a script and of a shell.
      for {text, result} <- [{"1", :built}, {"1", :reused}, {"2", :built}] do
        {function, _bindings} =
          Code.eval_string("&run.(&1, \"create table t#{text} (n int)\")", run: &run/2)

        assert {:ok, ^result} = PgliteEx.prepare(server, name, function, key: "key")
      end
    end

    test "is what a reset connection goes back to", %{server: server} do
      connection = start_session!(server)
      query!(connection, "create table changed (n int)")
      assert :ok = Template.reset(connection)
      assert query!(connection, "select to_regclass('changed') is null as gone") =~ <<1::32, "t">>
      :ok = PgliteEx.close(connection)
      assert {:error, %PgliteEx.Error{code: "08003"}} = Template.reset(connection)
    end

    # This process traps no exits.
    for {what, failure, message} <- [
          {"raises", quote(do: raise(ArgumentError, "no migrations")), "no migrations"},
          {"throws", quote(do: throw(:a_ball)), ":a_ball"},
          {"exits", quote(do: exit(:tired)), "tired"},
          {"is linked to a process that crashes",
           quote do
             spawn_link(fn -> exit(:a_repo_crashed) end)
             receive do: (:never -> :ok)
           end, "a_repo_crashed"},
          {"is linked to a process that is killed",
           quote do
             Process.exit(spawn_link(fn -> receive do: (:never -> :ok) end), :kill)
             receive do: (:never -> :ok)
           end, "killed"}
        ] do
      test "is not made when its function #{what}, and the caller goes on",
           %{server: server, name: name} do
        assert {:error, %PgliteEx.Error{code: :prepare_failed, message: message}} =
                 PgliteEx.prepare(server, name, fn _ -> unquote(failure) end)

        assert message =~ unquote(message)
        assert {:ok, templates} = Template.list(server)
        refute Enum.any?(templates, &(&1.name == name))
        assert {:messages, []} = Process.info(self(), :messages)
      end
    end

    test "is not made when its caller ends: the function and its server end too",
         %{server: server, name: name} do
      test = self()

      caller =
        spawn(fn ->
          PgliteEx.prepare(server, name, fn connection_opts ->
            send(test, {:preparing, self(), Process.get(:"$callers"), connection_opts})
            receive do: (:never -> :ok)
          end)
        end)

      assert_receive {:preparing, worker, [^caller], options}, 10_000
      monitor = Process.monitor(worker)
      {:ok, client} = :gen_tcp.connect(~c"127.0.0.1", options[:port], [:binary, active: false])
      Process.exit(caller, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^worker, :killed}, 5_000
      assert {:error, :closed} = receive_until_closed(client)
    end

    test "is not made of a cluster with an open transaction", %{server: server, name: name} do
      connection = start_session!(server)
      query!(connection, "begin")
      assert {:error, %PgliteEx.Error{code: "55006"}} = PgliteEx.freeze(connection, name)
    end

    @tag :prepare
    test "is built once, and cloned for every connection", %{server: server, name: name} do
      test = self()

      prepare = fn connection_opts ->
        send(test, :prepared)

        socket = WireClient.start_session_with!(connection_opts)
        {:ok, []} = WireClient.query(socket, "create table users as select 1 as id")
        :gen_tcp.close(socket)
      end

      assert {:ok, :built} = PgliteEx.prepare(server, name, prepare, key: "1")
      assert_received :prepared
      assert {:ok, :reused} = PgliteEx.prepare(server, name, prepare, key: "1")
      refute_received :prepared

      {one, _key} = WireClient.start_session!(server, database: name)
      {other, _key} = WireClient.start_session!(server, database: name)
      assert {:ok, []} = WireClient.query(one, "insert into users values (2)")
      assert {:ok, [["2"]]} = WireClient.query(one, "select count(*) from users")
      assert {:ok, [["1"]]} = WireClient.query(other, "select count(*) from users")
      assert {:ok, [[^name]]} = WireClient.query(other, "select current_database()")

      assert {:ok, :built} = PgliteEx.prepare(server, name, prepare, key: "2")
      assert_received :prepared
    end

    defp prepare_value(server, name, value) do
      function = fn connection_opts -> run(connection_opts, "create table t#{value} (n int)") end
      {:ok, result} = PgliteEx.prepare(server, name, function, key: "key")
      result
    end

    defp sql(sql), do: &run(&1, sql)

    defp run(connection_opts, sql) do
      socket = WireClient.start_session_with!(connection_opts)
      {:ok, []} = WireClient.query(socket, sql)
      :gen_tcp.close(socket)
    end

    # A client that sends nothing may be told why it is closed.
    defp receive_until_closed(client) do
      with {:ok, _bytes} <- :gen_tcp.recv(client, 0, 10_000), do: receive_until_closed(client)
    end

    defp start_session!(server) do
      {:ok, connection} = PgliteEx.open(server)
      :ok = PgliteEx.send(connection, WireClient.startup_packet())
      await_answer(connection, <<>>)
      connection
    end

    defp query!(connection, sql) do
      :ok = PgliteEx.send(connection, WireClient.query_message(sql))
      answer = await_answer(connection, <<>>)
      refute answer =~ "ERROR"
      answer
    end

    defp await_answer(connection, bytes) do
      if WireClient.ready?(bytes) do
        bytes
      else
        assert_receive {:pglite_ex, ^connection, {:data, more}}, 10_000
        await_answer(connection, bytes <> more)
      end
    end

    defp drop(name) do
      {:ok, server} = PgliteEx.start_link(mode: :isolated)
      PgliteEx.request(server, "drop_template", [{"name", name}])
      PgliteEx.stop(server)
    end
  end
end
