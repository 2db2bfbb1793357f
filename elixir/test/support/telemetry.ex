defmodule :telemetry do
  @moduledoc """
  Stands in for the application `:telemetry`, as far as PgliteEx and its tests use it, so that
  the tests need no package. Handlers are kept for the whole VM.
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
end
