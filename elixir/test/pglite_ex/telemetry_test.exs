defmodule PgliteEx.TelemetryTest do
  # Handlers are the VM's.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  alias PgliteEx.{Servers, Telemetry, WireClient}

  doctest Telemetry

  setup context do
    test = self()

    handler = fn event, measurements, metadata, _ ->
      send(test, {event, measurements, metadata})
    end

    :ok = :telemetry.attach_many(context.test, Telemetry.events(), handler, nil)
    on_exit(fn -> :telemetry.detach(context.test) end)
  end

  test "a server's life is told by its start and its stop" do
    server = Servers.start!(name: :observed_server)

    assert_receive {[:pglite_ex, :server, :start], %{duration: _},
                    %{server: :observed_server} = metadata}

    assert metadata.hello["postgres"] =~ "18"

    PgliteEx.stop(server)

    assert_receive {[:pglite_ex, :server, :stop], %{duration: _},
                    %{server: :observed_server, reason: :shutdown}}
  end

  test "a connection's life is told with its bytes, its first answer and its end" do
    server = Servers.start!(name: :observed_connections, mode: :isolated)
    {client, _key} = WireClient.start_session!(server)
    assert_receive {[:pglite_ex, :connection, :start], %{system_time: _}, %{id: id, peer: {_, _}}}

    {:ok, _rows} = WireClient.query(client, "select repeat('x', 10000)")
    :ok = :gen_tcp.send(client, WireClient.terminate_message())

    assert_receive {[:pglite_ex, :connection, :stop], measurements, %{id: ^id} = metadata}, 5_000
    assert metadata.reason["code"] == "00000"
    assert measurements.bytes_out > 10_000
    assert measurements.bytes_in > 30
    assert measurements.first_answer in 1..measurements.duration
  end

  test "the default logger writes every event" do
    assert :ok = Telemetry.attach_default_logger(:info)
    assert {:error, :already_exists} = Telemetry.attach_default_logger(:info)

    log = capture_log(fn -> Servers.start!(name: :logged_server) end)
    assert log =~ "pglite_ex server start"
    assert log =~ ":logged_server"

    assert :ok = Telemetry.detach_default_logger()
    assert {:error, :not_found} = Telemetry.detach_default_logger()
  end
end
