defmodule PgliteEx.ReadinessTest do
  @moduledoc "Servers whose programs take their time to start, or do not."
  use ExUnit.Case, async: true

  alias PgliteEx.{BadProgram, Error, OperatingSystem, Servers, WireClient}

  @moduletag :tmp_dir

  # The first program starts at once, the others wait at a gate. They answer the first connection
  # when it has sent its startup packet, and end at what comes next.
  @slow_restart """
  if ! mkdir "$0.started" 2> /dev/null; then await_gate; fi
  hello
  head -c #{10 + 9 + byte_size(WireClient.startup_packet())} > /dev/null
  frame 1
  head -c 1 > /dev/null
  """
  @answer <<?Z, 5::32, ?I>>

  setup do
    Process.flag(:trap_exit, true)
    :ok
  end

  describe "while the program is restarted" do
    setup %{tmp_dir: directory} do
      gate = BadProgram.make_gate!(directory)
      server = Servers.start!(executable: program(directory), on_data_loss: :restart)
      OperatingSystem.kill_program!(server)
      %{gate: gate, server: server}
    end

    defp program(directory),
      do: BadProgram.write!(directory, @slow_restart, [{:data, 1, @answer}])

    test "its supervisor does not wait, and can stop the server", %{server: server} do
      assert [_ | _] = Supervisor.which_children(server)
      assert {:error, %Error{code: "57P03"}} = PgliteEx.await_ready(server, 10)
      assert :ok = PgliteEx.stop(server)
    end

    test "requests and raw connections wait, with a deadline and the reason", context do
      assert {:error, %Error{code: "57P03"} = error} =
               PgliteEx.request(context.server, "stats", [], 10)

      assert error.message =~ "not ready within 10 ms"
      assert error.message =~ "killed by signal 9"

      opening = Task.async(fn -> PgliteEx.open(context.server) end)
      BadProgram.open_gate!(context.gate)
      assert {:ok, _connection} = Task.await(opening)
      assert :ok = PgliteEx.await_ready(context.server)
    end

    test "clients wait to be accepted", %{server: server, gate: gate} do
      client = WireClient.connect!(server)
      :ok = :gen_tcp.send(client, WireClient.startup_packet())
      BadProgram.open_gate!(gate)
      assert {:ok, @answer} = :gen_tcp.recv(client, 0, 10_000)
      assert :ok = PgliteEx.await_ready(server)
    end
  end

  test "a server whose program cannot be started is an error, at once", %{tmp_dir: directory} do
    program = BadProgram.write!(directory, "echo once >> $0.starts; echo 'no room' >&2; exit 1")
    assert {:error, reason} = PgliteEx.start_link(executable: program)
    assert Exception.format_exit(reason) =~ "no room"
    # Not after the restarts that a server gets that has been running.
    assert File.read!("#{program}.starts") == "once\n"
  end

  test "a server whose program is missing is an error" do
    assert {:error, {%Error{code: :executable_not_found}, _stacktrace}} =
             PgliteEx.start_link(executable: "/nowhere/pglite-port")
  end

  test "a server whose program ends again and again is given up", %{tmp_dir: directory} do
    program = BadProgram.write!(directory, "hello; head -c 1 > /dev/null; exit 1")
    {:ok, server} = PgliteEx.start_link(executable: program, on_data_loss: :restart)
    end_it_again_and_again(server)
    assert_receive {:EXIT, ^server, :shutdown}, 10_000
  end

  # Every request ends the program that gets it.
  defp end_it_again_and_again(server) do
    case PgliteEx.request(server, "stats") do
      {:error, %Error{code: "57P01"}} -> end_it_again_and_again(server)
    end
  catch
    :exit, {:noproc, _call} -> :ok
  end
end
