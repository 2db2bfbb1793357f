defmodule Integration.TelemetryTest do
  @moduledoc "The real packages telemetry and telemetry_metrics, which PgliteEx does not depend on."
  use ExUnit.Case, async: false

  @moduletag mode: :isolated

  test "a reporter of Telemetry.Metrics reports the metrics" do
    {:ok, output} = StringIO.open("")
    metrics = PgliteEx.Telemetry.metrics()
    start_supervised!({Telemetry.Metrics.ConsoleReporter, metrics: metrics, device: output})
    server = start_supervised!({PgliteEx, name: :reported_server, mode: :isolated})
    {:error, _error} = PgliteEx.request(server, "dance")
    :ok = stop_supervised({PgliteEx, :reported_server})

    {_input, text} = StringIO.contents(output)
    assert text =~ "Event name: pglite_ex.startup.stop"

    assert text =~
             ~r/Metric measurement: :duration.*\n.*Tag values: %{server: :reported_server, verb: "dance"}/s

    refute text =~ "Errored when processing"
  end

  test "the first and the last event of a span have one context" do
    test = self()
    events = for event <- [:start, :stop], do: [:pglite_ex, :request, event]
    send_it = fn [_, _, event], _, metadata, _ -> send(test, {event, metadata}) end
    :ok = :telemetry.attach_many(__MODULE__, events, send_it, nil)
    on_exit(fn -> :telemetry.detach(__MODULE__) end)

    server = start_supervised!({PgliteEx, mode: :isolated})
    {:ok, _stats} = PgliteEx.stats(server)
    assert_receive {:start, %{telemetry_span_context: context, verb: "stats"}}
    assert_receive {:stop, %{telemetry_span_context: ^context, verb: "stats", error: nil}}
  end
end
