defmodule :telemetry do
  @moduledoc """
  Stands in for the application `:telemetry`, as far as PgliteEx and its tests use it, so that
  the tests need no package; those in `integration/` have the real one. Handlers are kept for the
  whole VM.
  """

  def attach_many(id, events, function, config) do
    handlers = :persistent_term.get(__MODULE__, %{})

    if is_map_key(handlers, id) do
      {:error, :already_exists}
    else
      :persistent_term.put(__MODULE__, Map.put(handlers, id, {events, function, config}))
    end
  end

  def detach(id) do
    {handler, handlers} = Map.pop(:persistent_term.get(__MODULE__, %{}), id)
    :persistent_term.put(__MODULE__, handlers)
    if handler, do: :ok, else: {:error, :not_found}
  end

  def execute(event, measurements, metadata) do
    for {_id, {events, function, config}} <- :persistent_term.get(__MODULE__, %{}),
        event in events,
        do: function.(event, measurements, metadata, config)

    :ok
  end

  def span(prefix, start_metadata, fun) do
    started_at = System.monotonic_time()
    context = %{telemetry_span_context: make_ref()}
    start = %{monotonic_time: started_at, system_time: System.system_time()}
    execute(prefix ++ [:start], start, Map.merge(context, start_metadata))

    try do
      {result, stop_metadata} = fun.()
      execute(prefix ++ [:stop], times(started_at), Map.merge(context, stop_metadata))
      result
    catch
      kind, reason ->
        failure = %{kind: kind, reason: reason, stacktrace: __STACKTRACE__}
        metadata = context |> Map.merge(start_metadata) |> Map.merge(failure)
        execute(prefix ++ [:exception], times(started_at), metadata)
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  defp times(started_at) do
    now = System.monotonic_time()
    %{monotonic_time: now, duration: now - started_at}
  end
end
