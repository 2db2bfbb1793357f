defmodule PgliteEx.Span do
  @moduledoc false
  # A telemetry span that begins and ends in different callbacks of a process.
  #
  # Its events have the measurements and metadata that `telemetry:span/3` gives to those of a
  # function: `monotonic_time`, `system_time`, `duration`, and one `telemetry_span_context` for all
  # of them. The functions return the events, so that another process can emit them.

  alias PgliteEx.Telemetry

  @enforce_keys [:name, :started_at, :metadata]
  defstruct [:name, :started_at, :metadata]

  @type t :: %__MODULE__{name: [atom, ...], started_at: integer, metadata: map}

  @doc "A span that starts now, with its first event."
  @spec start([atom, ...], map) :: {t, Telemetry.event()}
  def start(name, metadata) do
    started_at = System.monotonic_time()
    metadata = Map.put(metadata, :telemetry_span_context, make_ref())
    measurements = %{monotonic_time: started_at, system_time: System.system_time()}
    span = %__MODULE__{name: name, started_at: started_at, metadata: metadata}
    {span, {name ++ [:start], measurements, metadata}}
  end

  @doc "The last event of a span that ends now as it should."
  @spec stop(t, map, map) :: Telemetry.event()
  def stop(%__MODULE__{} = span, measurements, metadata),
    do: last_event(span, :stop, measurements, metadata)

  @doc "The last event of a span that a failure ends now."
  @spec exception(t, map, kind :: :error | :exit | :throw, reason :: term, Exception.stacktrace()) ::
          Telemetry.event()
  def exception(%__MODULE__{} = span, measurements, kind, reason, stacktrace) do
    metadata = %{kind: kind, reason: reason, stacktrace: stacktrace}
    last_event(span, :exception, measurements, metadata)
  end

  defp last_event(span, name, measurements, metadata) do
    now = System.monotonic_time()
    times = %{monotonic_time: now, duration: now - span.started_at}
    {span.name ++ [name], Map.merge(measurements, times), Map.merge(span.metadata, metadata)}
  end
end
