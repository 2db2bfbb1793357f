defmodule PgliteEx.Telemetry do
  @moduledoc """
  The events that a server emits, through `:telemetry` when that application is loaded.

  Without it nothing is computed or sent: `:telemetry` is not a dependency of this library.
  Durations are in native time units (`System.convert_time_unit/3`), sizes in bytes. `server` in
  the metadata is the option `:name`, `mode` the option `:mode`.

  | event | measurements | metadata |
  | --- | --- | --- |
  | `[:pglite_ex, :server, :start]` – the program has said hello | `duration` from its start | `server`, `mode`, `os_pid`, `hello` (versions and limits) |
  | `[:pglite_ex, :server, :stop]` – it was stopped, or has died | `duration` of its life | `server`, `mode`, `os_pid`, `reason` |
  | `[:pglite_ex, :connection, :start]` – a client was accepted | `system_time` | `server`, `mode`, `id`, `peer` |
  | `[:pglite_ex, :connection, :stop]` – it is gone | `duration`; `first_answer`: from its start to the first bytes for it, which holds the making of its clone or session (`nil` if there were none); `bytes_in` from the client, `bytes_out` to it | `server`, `mode`, `id`, `peer`, `reason` (`severity`, `code`, `message`) |
  | `[:pglite_ex, :template, :prepare]` – a template was asked for | `duration` | `server`, `name`, `key`, `built?` (false: it was there) |

  Logging of these events is one line in `c:Application.start/2`:

      PgliteEx.Telemetry.attach_default_logger()
  """

  require Logger

  @events [
    [:pglite_ex, :server, :start],
    [:pglite_ex, :server, :stop],
    [:pglite_ex, :connection, :start],
    [:pglite_ex, :connection, :stop],
    [:pglite_ex, :template, :prepare]
  ]

  @doc """
  All events, for `:telemetry.attach_many/4`.

      iex> [:pglite_ex, :connection, :stop] in PgliteEx.Telemetry.events()
      true
  """
  @spec events() :: [[atom, ...]]
  def events, do: @events

  @doc "Emits an event, if anybody can hear it."
  @spec execute([atom, ...], map, map) :: :ok
  def execute(event, measurements, metadata) do
    if function_exported?(:telemetry, :execute, 3),
      do: :telemetry.execute([:pglite_ex | event], measurements, metadata),
      else: :ok
  end

  @doc """
  Logs every event at `level`; `{:error, :already_exists}` when it does already.

  Returns `{:error, :telemetry_not_loaded}` when the application `:telemetry` is not there.
  """
  @spec attach_default_logger(Logger.level()) ::
          :ok | {:error, :already_exists | :telemetry_not_loaded}
  def attach_default_logger(level \\ :info) do
    if Code.ensure_loaded?(:telemetry),
      do: :telemetry.attach_many(__MODULE__, @events, &__MODULE__.log_event/4, level),
      else: {:error, :telemetry_not_loaded}
  end

  @doc "Stops what `attach_default_logger/1` began."
  @spec detach_default_logger() :: :ok | {:error, :not_found | :telemetry_not_loaded}
  def detach_default_logger do
    if Code.ensure_loaded?(:telemetry),
      do: :telemetry.detach(__MODULE__),
      else: {:error, :telemetry_not_loaded}
  end

  @doc false
  @spec log_event([atom, ...], map, map, Logger.level()) :: :ok
  def log_event([:pglite_ex | event], measurements, metadata, level) do
    Logger.log(level, fn ->
      "pglite_ex #{Enum.join(event, " ")} #{inspect(readable(measurements))} #{inspect(metadata)}"
    end)
  end

  defp readable(measurements) do
    Map.new(measurements, fn
      {key, native} when key in [:duration, :first_answer] and is_integer(native) ->
        {key, "#{System.convert_time_unit(native, :native, :microsecond)} µs"}

      other ->
        other
    end)
  end
end
