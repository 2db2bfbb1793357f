defmodule Telemetry.Metrics do
  @moduledoc """
  Stands in for the package `telemetry_metrics`, as far as PgliteEx uses it. The tests in
  `integration/` have the real one.
  """

  for kind <- [:counter, :sum, :summary] do
    def unquote(kind)(name, options) do
      {event, [measurement]} = Enum.split(name, -1)

      %{
        kind: unquote(kind),
        name: name,
        event_name: Keyword.get(options, :event_name, event),
        measurement: Keyword.get(options, :measurement, measurement),
        tags: options[:tags],
        keep: options[:keep]
      }
    end
  end
end
