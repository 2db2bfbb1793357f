defmodule PgliteEx.PartsTest do
  # Atoms and telemetry handlers are the VM's.
  use ExUnit.Case, async: false

  alias PgliteEx.{Gate, Listener, Parts, Server, Servers, WasmPort, WireClient}

  test "the parts of a server are found while its supervisor answers nobody" do
    server = Servers.start!(mode: :isolated)
    gate = start_supervised!({Gate, server: server})
    for supervisor <- [server, gate], do: :sys.suspend(supervisor)

    asked =
      Task.async(fn ->
        assert {:ok, _stats} = PgliteEx.stats(server)
        assert {:ok, _connection} = PgliteEx.open(server)
        for at <- [server, gate], do: PgliteEx.connection_opts(at) ++ [url: PgliteEx.url(at)]
      end)

    answer = Task.yield(asked, 10_000) || Task.shutdown(asked)
    for supervisor <- [server, gate], do: :sys.resume(supervisor)
    assert {:ok, [_server, _gate]} = answer
  end

  test "a gate's clients find a program whose supervisor answers nobody" do
    server = Servers.start!(mode: :isolated)
    gate = start_supervised!({Gate, server: server})
    :sys.suspend(server)
    connecting = Task.async(fn -> WireClient.start_session!(gate) end)
    answer = Task.yield(connecting, 10_000) || Task.shutdown(connecting)
    :sys.resume(server)
    assert {:ok, {_client, _key}} = answer
  end

  test "gates that come and go make no new names" do
    server = Servers.start!(mode: :isolated)
    open_and_close = fn -> server |> then(&Gate.start_link(server: &1)) |> elem(1) |> stop() end
    open_and_close.()
    before = :erlang.system_info(:atom_count)
    for _ <- 1..20, do: open_and_close.()
    assert :erlang.system_info(:atom_count) == before
  end

  test "a part that has ended, or whose server has, is nobody" do
    server = Servers.start!(mode: :isolated)
    registry = Parts.registry(server)
    assert Parts.whereis(registry, :no_such_part) == nil
    PgliteEx.stop(server)
    assert Parts.registry(server) == nil
    assert Parts.whereis(registry, Listener) == nil
    assert {:noproc, _} = catch_exit(PgliteEx.address(server))
    assert {:noproc, _} = catch_exit(PgliteEx.address(:no_such_server))
    assert {:noproc, _} = catch_exit(PgliteEx.address(self()))
  end

  test "a server with a name that was killed can be started again at once" do
    Process.flag(:trap_exit, true)
    socket = Path.join(System.tmp_dir!(), "pglite_ex-#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm_rf!(socket) end)

    for _ <- 1..3 do
      {:ok, server} = PgliteEx.start_link(name: :killed_server, mode: :isolated)
      Process.exit(server, :kill)
      assert_receive {:EXIT, ^server, :killed}
    end

    {:ok, server} = PgliteEx.start_link(name: :killed_server, mode: :isolated)
    assert {:ok, _stats} = PgliteEx.stats(:killed_server)
    PgliteEx.stop(server)
  end

  test "a server is started anew when a process of its registry ends" do
    test = self()
    event = [:pglite_ex, :server, :start]

    :telemetry.attach_many(
      __MODULE__,
      [event],
      fn ^event, _measurements, %{server: server}, _config -> send(test, {:started, server}) end,
      nil
    )

    on_exit(fn -> :telemetry.detach(__MODULE__) end)
    server = Servers.start!(name: :registered_server, mode: :isolated)
    assert_receive {:started, :registered_server}
    registry = Parts.registry(server)

    for process <- [registry, Module.concat(registry, "PIDPartition0")] do
      monitor = server |> Server.child(WasmPort) |> Process.monitor()
      process |> Process.whereis() |> Process.exit(:kill)
      assert_receive {:DOWN, ^monitor, :process, _pid, _reason}, 10_000
      assert_receive {:started, :registered_server}, 10_000
      {client, _key} = WireClient.start_session!(server)
      assert {:ok, [["1"]]} = WireClient.query(client, "select 1")
    end
  end

  defp stop(gate), do: Supervisor.stop(gate)
end
