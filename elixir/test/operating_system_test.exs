defmodule PgliteEx.OperatingSystemTest do
  @moduledoc "Processes that are killed, as the operating system sees it."
  # Not beside a thousand connections of other tests, because seconds are counted here.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  alias PgliteEx.{BadProgram, Gate, Listener, OperatingSystem, Server, Servers, WasmPort}
  alias PgliteEx.WireClient

  test "when the VM is killed while queries run, the program is gone within two seconds" do
    {vm, program} = start_vm_with_running_query!()
    OperatingSystem.signal(vm, :KILL)
    assert OperatingSystem.ended_within?(program, 2)
  end

  test "when a server is stopped, its program has ended" do
    server = Servers.start!(mode: :isolated)
    program = OperatingSystem.program(server)
    :ok = PgliteEx.stop(server)
    refute File.exists?("/proc/#{program}")
  end

  test "when the port's owner is killed, its program ends" do
    server = Servers.start!(mode: :isolated)
    program = OperatingSystem.program(server)
    server |> Server.child(WasmPort) |> Process.exit(:kill)
    assert OperatingSystem.ended_within?(program, 2)
  end

  describe "when the program is killed" do
    setup do
      server = Servers.start!(mode: :isolated)
      %{server: server, program: OperatingSystem.program(server)}
    end

    test "an idle client is told", %{server: server, program: program} do
      {client, _key} = WireClient.start_session!(server)
      OperatingSystem.signal(program, :KILL)
      assert_terminated(client)
    end

    test "a client that waits for an answer is told", %{server: server, program: program} do
      {client, _key} = WireClient.start_session!(server)
      :ok = :gen_tcp.send(client, WireClient.query_message("select pg_sleep(60)"))
      OperatingSystem.signal(program, :KILL)
      assert_terminated(client)
    end

    test "every one of many clients is told", %{server: server, program: program} do
      clients = for _ <- 1..50, do: elem(WireClient.start_session!(server), 0)
      OperatingSystem.signal(program, :KILL)
      Enum.each(clients, &assert_terminated/1)
    end

    test "a client in the middle of a result gets whole rows and then nothing",
         %{server: server, program: program} do
      {client, _key} = WireClient.start_session!(server)
      sql = "select repeat('x', 100000) from generate_series(1, 1000)"
      :ok = :gen_tcp.send(client, WireClient.query_message(sql))
      assert {:ok, {?T, _columns}} = WireClient.receive_message(client)
      OperatingSystem.signal(program, :KILL)

      for {type, body} <- receive_until_closed(client) do
        assert {?D, <<1::16, 100_000::32, row::binary>>} = {type, body}
        assert row == String.duplicate("x", 100_000)
      end
    end

    test "a raw connection is told", %{server: server, program: program} do
      {:ok, connection} = PgliteEx.open(server)
      OperatingSystem.signal(program, :KILL)
      assert_receive {:pglite_ex, ^connection, {:closed, %{"code" => "57P01"}}}, 5_000
    end

    test "the server is back within a second, at the same address, and leaves no zombie",
         %{server: server, program: program} do
      url = PgliteEx.url(server)
      {client, _key} = WireClient.start_session!(server)
      OperatingSystem.signal(program, :KILL)
      assert_terminated(client)

      {microseconds, {client, _key}} = :timer.tc(fn -> WireClient.start_session!(server) end)
      assert microseconds < 1_000_000
      assert {:ok, [["1"]]} = WireClient.query(client, "select 1")
      assert PgliteEx.url(server) == url
      assert OperatingSystem.program(server) != program
      refute OperatingSystem.zombie?(program)
    end

    test "a gate's clients are told, and its next one finds the new program",
         %{server: server, program: program} do
      gate = start_supervised!({Gate, server: server})
      {client, _key} = WireClient.start_session!(gate)
      OperatingSystem.signal(program, :KILL)
      assert_terminated(client)

      # Answered by the new program.
      {_client, _key} = WireClient.start_session!(server)
      {client, _key} = WireClient.start_session!(gate)
      assert {:ok, [["1"]]} = WireClient.query(client, "select 1")
    end

    test "five times, the server is still there", %{server: server} do
      for _ <- 1..5 do
        {client, _key} = WireClient.start_session!(server)
        OperatingSystem.signal(OperatingSystem.program(server), :KILL)
        assert_terminated(client)
      end

      {client, _key} = WireClient.start_session!(server)
      assert {:ok, [["1"]]} = WireClient.query(client, "select 1")
    end
  end

  test "a stalled program does not stall the VM's side of it" do
    server = Servers.start!(mode: :isolated)
    program = OperatingSystem.program(server)
    {client, _key} = WireClient.start_session!(server)
    OperatingSystem.signal(program, :STOP)

    :ok = :gen_tcp.send(client, WireClient.query_message("select 1"))
    # More than pipe and queue take, from several connections.
    for _ <- 1..8 do
      flood = WireClient.connect!(server, send_timeout: 100)
      :gen_tcp.send(flood, :binary.copy(<<0>>, 1_000_000))
      :gen_tcp.close(flood)
    end

    wasm_port = Server.child(server, WasmPort)
    assert {:ok, %{"protocol" => "1"}} = WasmPort.hello(wasm_port)
    assert {:error, %{code: :timeout}} = PgliteEx.request(server, "stats", [], 50)

    OperatingSystem.signal(program, :CONT)
    assert {:ok, messages} = WireClient.receive_answer(client)
    assert List.keymember?(messages, ?D, 0)
  end

  @tag :tmp_dir
  test "a VM that is killed at any moment leaves no file behind", %{tmp_dir: directory} do
    temporary = Path.join(directory, "tmp")
    File.mkdir_p!(temporary)
    kill_vm = "kill -KILL $VM_PID"

    for shell <- [kill_vm, "hello; #{kill_vm}", "hello; head -c 1 > /dev/null; #{kill_vm}"] do
      program = BadProgram.write!(directory, "echo 'a line' >&2; #{shell}")

      code = """
      System.put_env("VM_PID", System.pid())
      {:ok, server} = PgliteEx.start_link(executable: #{inspect(program)})
      PgliteEx.stats(server)
      """

      vm = OperatingSystem.start_vm!(code, env: [{~c"TMPDIR", to_charlist(temporary)}])
      # 128 and the signal.
      assert_receive {^vm, {:exit_status, 137}}, 30_000
      assert File.ls!(temporary) == []
    end
  end

  @tag :tmp_dir
  test "a VM without descriptors says so once, and accepts clients again when it has some",
       %{tmp_dir: directory} do
    program = BadProgram.write!(directory, "hello; exec sleep 1000")

    code = """
    {:ok, _started} = Application.ensure_all_started(:logger)
    {:ok, server} = PgliteEx.start_link(executable: #{inspect(program)})
    # Modules cannot be loaded either, without descriptors.
    for application <- [:kernel, :stdlib, :elixir, :logger, :pglite_ex] do
      _ = Application.load(application)
      application |> Application.spec(:modules) |> :code.ensure_modules_loaded()
    end

    IO.puts("ready \#{System.pid()} \#{elem(PgliteEx.address(server), 1)}")
    Process.sleep(:infinity)
    """

    vm = OperatingSystem.start_vm!(code)
    [os_pid, port] = vm |> OperatingSystem.await_line!("ready ") |> String.split()
    limit = length(File.ls!("/proc/#{os_pid}/fd")) + 3
    {_output, 0} = System.cmd("prlimit", ["--pid", os_pid, "--nofile=#{limit}:#{limit}"])

    clients =
      for _ <- 1..10 do
        {:ok, client} = :gen_tcp.connect({127, 0, 0, 1}, String.to_integer(port), active: false)
        client
      end

    assert_receive {^vm, {:data, {:eol, ""}}}, 10_000
    assert_receive {^vm, {:data, {:eol, warning}}}, 10_000
    assert warning =~ "[warning] no client can be accepted for now: too many open files"
    # It tries again several times meanwhile.
    refute_receive {^vm, _more_output}, 500
    Enum.each(clients, &:gen_tcp.close/1)
    assert_receive {^vm, {:data, {:eol, ""}}}, 10_000
    assert_receive {^vm, {:data, {:eol, information}}}, 10_000
    assert information =~ "[info] clients are accepted again"
    OperatingSystem.signal(os_pid, :KILL)
  end

  test "a listening socket that is lost is opened again, at the same address" do
    directory = Path.join(System.tmp_dir!(), "pglite_ex-#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm_rf!(directory) end)
    server = Servers.start!(mode: :isolated, listen: {:local, directory})
    listener = Server.child(server, Listener)
    monitor = Process.monitor(listener)

    log =
      capture_log(fn ->
        listener |> Listener.socket() |> :gen_tcp.close()
        assert_receive {:DOWN, ^monitor, :process, ^listener, _reason}, 5_000
        # The new one's parent answers when it has been started.
        assert [_ | _] = Supervisor.which_children(server)
      end)

    assert log =~ "the listening socket cannot be used any more: it is closed"
    {client, _key} = WireClient.start_session!(server)
    assert {:ok, [["1"]]} = WireClient.query(client, "select 1")
  end

  test "the standard error of the program is a pipe" do
    program = OperatingSystem.program(Servers.start!(mode: :isolated))
    assert {:ok, "pipe:" <> _} = File.read_link("/proc/#{program}/fd/2")
  end

  test "a unix socket left behind by a killed VM is taken over, and removed at the end" do
    directory = Path.join(System.tmp_dir!(), "pglite_ex-#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm_rf!(directory) end)
    path = Path.join(directory, ".s.PGSQL.5432")
    File.mkdir_p!(directory)
    {:ok, abandoned} = :socket.open(:local, :stream)
    :ok = :socket.bind(abandoned, %{family: :local, path: path})
    :ok = :socket.close(abandoned)
    assert File.exists?(path)

    server = Servers.start!(mode: :isolated, listen: {:local, path})
    {client, _key} = WireClient.start_session!(server)
    assert {:ok, [["1"]]} = WireClient.query(client, "select 1")
    :ok = PgliteEx.stop(server)
    refute File.exists?(path)
  end

  test "an address that is taken is refused with a sentence" do
    Process.flag(:trap_exit, true)
    server = Servers.start!(mode: :isolated)
    assert {:error, reason} = PgliteEx.start_link(listen: PgliteEx.address(server))
    assert Exception.format_exit(reason) =~ "address already in use"
  end

  defp assert_terminated(client) do
    assert {:ok, {?E, fields}} = WireClient.receive_message(client)
    assert WireClient.sqlstate(fields) == "57P01"
    assert {:error, :closed} = :gen_tcp.recv(client, 0, 5_000)
  end

  defp receive_until_closed(client) do
    case WireClient.receive_message(client) do
      {:ok, message} -> [message | receive_until_closed(client)]
      {:error, :closed} -> []
    end
  end

  # The VM prints its own process id and its program's when a query runs.
  defp start_vm_with_running_query! do
    code = """
    {:ok, server} = PgliteEx.start_link(mode: :isolated)
    {client, _key} = PgliteEx.WireClient.start_session!(server)
    :ok = :gen_tcp.send(client, PgliteEx.WireClient.query_message("select count(*) from generate_series(1, 1e12)"))
    program = PgliteEx.OperatingSystem.program(server)
    IO.puts("ready \#{System.pid()} \#{program}")
    Process.sleep(:infinity)
    """

    vm = OperatingSystem.start_vm!(code)
    vm |> OperatingSystem.await_line!("ready ") |> String.split() |> List.to_tuple()
  end
end
