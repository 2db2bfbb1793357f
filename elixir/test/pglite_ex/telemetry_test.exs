defmodule PgliteEx.TelemetryTest do
  # Handlers are the VM's.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  alias PgliteEx.{BadProgram, Connection, Error, OperatingSystem, Server, Servers, Telemetry}
  alias PgliteEx.{Template, WireClient}

  doctest Telemetry

  setup context do
    test = self()

    handler = fn [:pglite_ex, span, event], measurements, metadata, _ ->
      send(test, {span, event, measurements, metadata})
    end

    :ok = :telemetry.attach_many(context.test, Telemetry.events(), handler, nil)
    on_exit(fn -> :telemetry.detach(context.test) end)
  end

  describe "a server's life" do
    test "is a span of its start, and one of its run" do
      server = Servers.start!(name: :observed_server)
      start = assert_start(:startup, %{server: :observed_server, mode: :shared})
      stop = assert_stop(:startup, start)
      assert stop.hello["postgres"] =~ "18"
      start = assert_start(:server, %{server: :observed_server, os_pid: stop.os_pid})
      assert start.telemetry_span_context != stop.telemetry_span_context

      PgliteEx.stop(server)
      assert %{reason: :shutdown} = assert_stop(:server, start)
      refute_received {:server, _event, _measurements, _metadata}
    end

    test "ends with an exception when its program is killed, and begins again" do
      server = Servers.start!(name: :killed_program, on_data_loss: :restart)
      start = assert_start(:server, %{server: :killed_program})
      OperatingSystem.signal(OperatingSystem.program(server), :KILL)

      assert %{kind: :exit, reason: %Error{}, stacktrace: [_ | _]} =
               assert_exception(:server, start)

      assert %{os_pid: os_pid} = assert_start(:server, %{server: :killed_program})
      assert os_pid != start.os_pid
    end

    @tag :tmp_dir
    test "is a failed start when the program does not start", %{tmp_dir: directory} do
      Process.flag(:trap_exit, true)
      program = BadProgram.write!(directory, "exit 1")
      assert {:error, _reason} = PgliteEx.start_link(name: :no_start, executable: program)
      start = assert_start(:startup, %{server: :no_start})
      assert %{reason: %Error{code: :program_exited}} = assert_exception(:startup, start)
      refute_received {:server, _event, _measurements, _metadata}
    end
  end

  describe "a connection's life" do
    setup do
      %{server: Servers.start!(name: :observed_connections, mode: :isolated)}
    end

    test "is a span with its bytes, its first answer and its end", %{server: server} do
      {client, _key} = WireClient.start_session!(server)
      start = assert_start(:connection, %{server: :observed_connections, mode: :isolated})
      assert %{id: id, peer: {_, _}} = start
      assert is_integer(id)
      {:ok, _rows} = WireClient.query(client, "select repeat('x', 10000)")
      :ok = :gen_tcp.send(client, WireClient.terminate_message())

      assert_receive {:connection, :stop, measurements, metadata}, 5_000
      assert_last(start, measurements, metadata)
      assert metadata.reason["code"] == "00000"
      assert measurements.bytes_out > 10_000
      assert measurements.bytes_in > 30
      assert measurements.first_answer in 1..measurements.duration
    end

    test "ends with an exception when its process crashes", %{server: server} do
      {_client, _key} = WireClient.start_session!(server)
      start = assert_start(:connection, %{server: :observed_connections})

      [{_id, connection, _type, _modules}] =
        server |> Server.child(Connection) |> DynamicSupervisor.which_children()

      :sys.replace_state(connection, &%{&1 | channel: :no_channel})
      {:tcp, socket} = :sys.get_state(connection).socket
      send(connection, {:tcp, socket, "bytes"})
      assert_receive {:connection, :exception, measurements, metadata}, 5_000
      assert_last(start, measurements, metadata)
      assert %{kind: :exit, reason: :function_clause, stacktrace: [_ | _]} = metadata
      assert measurements.bytes_out > 0
    end

    test "is a span also when there is no program to serve it", %{server: server} do
      gate = start_supervised!({PgliteEx.Gate, server: server})
      PgliteEx.stop(server)
      client = WireClient.connect!(gate)
      assert {:ok, {?E, _fields}} = WireClient.receive_message(client)
      start = assert_start(:connection, %{id: nil})
      assert %{reason: %{"code" => "57P01"}} = assert_stop(:connection, start)
    end
  end

  describe "a request" do
    test "is a span of its caller, with its error" do
      server = Servers.start!(name: :asked_server)
      {:ok, _stats} = PgliteEx.stats(server)
      start = assert_start(:request, %{server: :asked_server, verb: "stats"})
      assert %{error: nil} = assert_stop(:request, start)

      {:error, error} = PgliteEx.request(server, "dance")
      start = assert_start(:request, %{server: :asked_server, verb: "dance"})
      assert %{error: ^error} = assert_stop(:request, start)
    end

    test "for a raw connection names its server" do
      server = Servers.start!(name: :asked_server, mode: :isolated)
      {:ok, connection} = PgliteEx.open(server)
      :ok = PgliteEx.send(connection, WireClient.startup_packet())
      await_ready(connection, <<>>)
      assert :ok = Template.reset(connection)
      start = assert_start(:request, %{server: :asked_server, verb: "reset"})
      assert %{error: nil} = assert_stop(:request, start)
    end

    defp await_ready(connection, bytes) do
      unless WireClient.ready?(bytes) do
        assert_receive {:pglite_ex, ^connection, {:data, more}}, 10_000
        await_ready(connection, bytes <> more)
      end
    end
  end

  @tag :prepare
  test "the making of a template is a span of its caller, with its result or error" do
    name = "pglite_ex_test_telemetry_#{System.pid()}"
    server = Servers.start!(name: :preparing_server, mode: :isolated)

    create = fn connection_opts ->
      socket = WireClient.start_session_with!(connection_opts)
      {:ok, []} = WireClient.query(socket, "create table kept (n int)")
      :gen_tcp.close(socket)
    end

    for {fun, result} <- [{create, :built}, {fn _ -> raise "failure" end, nil}] do
      answer = PgliteEx.prepare(server, name, fun, key: "#{result}")
      start = assert_start(:prepare, %{server: :preparing_server, name: name, key: "#{result}"})
      stop = assert_stop(:prepare, start)
      assert stop.result == result
      assert answer == if(result, do: {:ok, result}, else: {:error, stop.error})
    end

    assert {:ok, :reused} = PgliteEx.prepare(server, name, create, key: "built")
    start = assert_start(:prepare, %{name: name})
    assert %{result: :reused} = assert_stop(:prepare, start)
    assert :ok = Template.drop(server, name)
  end

  test "the default logger writes every event" do
    assert :ok = Telemetry.attach_default_logger(:info)
    assert {:error, :already_exists} = Telemetry.attach_default_logger(:info)

    log =
      capture_log(fn ->
        # The last event is logged when the server has stopped.
        PgliteEx.stop(Servers.start!(name: :logged_server))
      end)

    for event <- ["startup start", "startup stop", "server start", "server stop"],
        do: assert(log =~ "pglite_ex #{event}")

    assert log =~ ":logged_server"
    assert log =~ ~r/duration: "\d+ µs"/
    refute log =~ "telemetry_span_context"

    assert :ok = Telemetry.detach_default_logger()
    assert {:error, :not_found} = Telemetry.detach_default_logger()
  end

  describe "the metrics" do
    test "are of events and measurements that there are, each with a name of its own" do
      metrics = Telemetry.metrics()
      assert metrics != []
      for metric <- metrics, do: assert(metric.event_name in Telemetry.events())
      assert metrics == Enum.uniq_by(metrics, & &1.name)
    end

    test "can be taken of what the spans emit" do
      server = Servers.start!(name: :measured_server, mode: :isolated)
      {client, _key} = WireClient.start_session!(server)
      {:error, _error} = PgliteEx.request(server, "dance")
      :ok = :gen_tcp.send(client, WireClient.terminate_message())
      assert_receive {:connection, :stop, _measurements, _metadata} = last, 5_000

      taken =
        for {span, event, measurements, metadata} <- [last | received()],
            metric <- Telemetry.metrics(),
            metric.event_name == [:pglite_ex, span, event],
            keep?(metric.keep, metadata, measurements) do
          assert is_integer(measurements[metric.measurement])
          for tag <- metric.tags, do: assert(is_map_key(metadata, tag))
          metric.name
        end

      for name <- [
            [:pglite_ex, :startup, :stop, :duration],
            [:pglite_ex, :connection, :stop, :first_answer],
            [:pglite_ex, :connection, :stop, :bytes_in],
            [:pglite_ex, :request, :stop, :duration],
            [:pglite_ex, :request, :failures]
          ],
          do: assert(name in taken)

      refute [:pglite_ex, :startup, :failures] in taken
    end
  end

  defp keep?(nil, _metadata, _measurements), do: true
  defp keep?(keep, metadata, _measurements) when is_function(keep, 1), do: keep.(metadata)
  defp keep?(keep, metadata, measurements), do: keep.(metadata, measurements)

  defp received do
    receive do
      {_span, _event, _measurements, _metadata} = event -> [event | received()]
    after
      0 -> []
    end
  end

  # The metadata of a span's first event, which contains `metadata`.
  defp assert_start(span, metadata) do
    assert_receive {^span, :start, measurements, found}, 5_000
    assert %{monotonic_time: _, system_time: _} = measurements
    assert Map.take(found, Map.keys(metadata)) == metadata
    assert is_reference(found.telemetry_span_context)
    found
  end

  defp assert_stop(span, start) do
    assert_receive {^span, :stop, measurements, metadata}, 5_000
    assert_last(start, measurements, metadata)
    metadata
  end

  defp assert_exception(span, start) do
    assert_receive {^span, :exception, measurements, metadata}, 5_000
    assert_last(start, measurements, metadata)
    metadata
  end

  defp assert_last(start, measurements, metadata) do
    assert %{monotonic_time: _, duration: duration} = measurements
    assert duration > 0
    assert Map.take(metadata, Map.keys(start)) == start
  end
end
