defmodule PgliteEx.Telemetry do
  @moduledoc """
  The events that this library emits through `:telemetry`, where that application is loaded.

  Without it nothing is computed or sent: `:telemetry` is not a dependency of this library.

  All events belong to spans, with the conventions of `:telemetry.span/3`. A span begins with an event
  that ends in `:start`, and ends with one that ends in `:stop`, or in `:exception` when a failure
  ended it. A process that is killed emits no last event.

  ## Measurements and metadata of every span

  | event | measurements | metadata |
  | --- | --- | --- |
  | `:start` | `monotonic_time`, `system_time` | `telemetry_span_context` |
  | `:stop` | `monotonic_time`, `duration` | that of `:start` |
  | `:exception` | `monotonic_time`, `duration` | that of `:start`; `kind`, `reason`, `stacktrace` |

  `telemetry_span_context` is a reference, the same in all events of a span.

  Times are in native units (`System.convert_time_unit/3`), sizes in bytes. In the metadata, `server`
  is the option `:name` of the server, and `mode` its option `:mode`.

  ## `[:pglite_ex, :startup, …]` – the program is started

  From the start of `pglite-port` until clients are let in: its hello has come, the frame with which it
  reports that it runs, the database of the options is there, and the function of `after_start:` has
  returned. If the start fails, the span ends with `:exception`.

    * `:start` – metadata: `server`, `mode`
    * `:stop` – and `os_pid`, the process id of the program; `hello`, the content of its hello:
      versions and limits
    * `:exception` – `reason` is a `PgliteEx.Error`

  A server that is stopped meanwhile ends the span with `:stop` and `reason`.

  ## `[:pglite_ex, :server, …]` – the program runs

  From when clients are let in to its end. When it ends by itself, is killed, or breaks the protocol, the span ends
  with `:exception`, and another `:startup` follows.

    * `:start` – metadata: `server`, `mode`, `os_pid`, `hello`
    * `:stop` – and `reason`, with which the process that runs the program was stopped
    * `:exception` – `reason` is a `PgliteEx.Error`

  ## `[:pglite_ex, :connection, …]` – a client of the socket is served

  From the moment at which the client's connection is given to the program to its end. Connections
  without a socket (`PgliteEx.open/2`) have no events.

    * `:start` – metadata: `server`, `mode`; `id`, the connection's number, as in the program's log, or
      `nil` when there is no program to serve it; `peer`, the client's address
    * `:stop` – and `reason`, why it ended: a map of `"severity"`, `"code"` (SQLSTATE) and `"message"`
    * `:stop` and `:exception` – further measurements: `bytes_in` from the client, `bytes_out` to it;
      `first_answer`, from the start to the first bytes for the client, including the time to make
      its clone or session; `nil` when there were no bytes

  ## `[:pglite_ex, :request, …]` – a request to the program

  `PgliteEx.request/4` and the functions that make requests: `PgliteEx.stats/1`,
  `PgliteEx.backup/3`, those of `PgliteEx.Template`. Emitted in the calling process.

    * `:start` – metadata: `server`, `verb`
    * `:stop` – and `error`: a `PgliteEx.Error`, or `nil`

  ## `[:pglite_ex, :prepare, …]` – a template is asked for

  `PgliteEx.prepare/4`. Emitted in the calling process.

    * `:start` – metadata: `server`; `name` and `key` of the template
    * `:stop` – and `result`: `:built`, `:reused`, or `nil` with an error; `error`: a
      `PgliteEx.Error`, or `nil`

  ## `[:pglite_ex, :branch, …]` – a branch is made

  `PgliteEx.branch/2`, `PgliteEx.Case`, `PgliteEx.Sandbox`. Emitted in the process that makes it.

    * `:start` – metadata: `server`; `name` of the branch; `origin`: `{:template, name}` or `{:branch, name}`
    * `:stop` – and `error`: a `PgliteEx.Error`, or `nil`

  ## `[:pglite_ex, :backup, …]` – a cluster is backed up

  `PgliteEx.backup/3`. Emitted in the calling process.

    * `:start` – metadata: `server`; `path` of the file
    * `:stop` – and `error`: a `PgliteEx.Error`, or `nil`

  ## `[:pglite_ex, :restore, …]` – a backup is restored

  `PgliteEx.restore/3`. Emitted in the calling process.

    * `:start` – metadata: `path` of the file; `directory`
    * `:stop` – and `error`: a `PgliteEx.Error`, or `nil`

  ## Logging and metrics

  Logging of these events is one line in `c:Application.start/2`:

      PgliteEx.Telemetry.attach_default_logger()

  `metrics/0` has definitions for reporters of `Telemetry.Metrics`.
  """

  require Logger

  @spans [:startup, :server, :connection, :request, :prepare, :branch, :backup, :restore]
  @events for span <- @spans, event <- [:start, :stop, :exception], do: [:pglite_ex, span, event]

  @typedoc "An event without its prefix `:pglite_ex`, its measurements and its metadata."
  @type event :: {[atom, ...], map, map}

  @doc """
  All events, for `:telemetry.attach_many/4`.

      iex> [:pglite_ex, :connection, :stop] in PgliteEx.Telemetry.events()
      true
  """
  @spec events() :: [[atom, ...]]
  def events, do: @events

  @doc """
  Definitions of metrics for a reporter of `Telemetry.Metrics`.

      children = [
        {Telemetry.Metrics.ConsoleReporter, metrics: PgliteEx.Telemetry.metrics()}
      ]

  They are summaries of the durations of spans, counters of failures, and sums of the bytes of
  connections. Raises `RuntimeError` when the package `telemetry_metrics`, which is not a
  dependency of this library, is not there.
  """
  @spec metrics() :: [struct]
  def metrics do
    unless Code.ensure_loaded?(Telemetry.Metrics) do
      raise "PgliteEx.Telemetry.metrics/0 needs the package telemetry_metrics: " <>
              ~s(add {:telemetry_metrics, "~> 1.1"} to the dependencies)
    end

    durations() ++ failures() ++ bytes()
  end

  defp durations do
    for {span, measurement, tags, description} <- [
          {:startup, :duration, [:server],
           "From the start of the program until clients are let in"},
          {:connection, :duration, [:server], "How long a client is connected"},
          {:connection, :first_answer, [:server], "From a connection to its first answer"},
          {:request, :duration, [:server, :verb], "From a request to its reply"},
          {:prepare, :duration, [:server, :name, :result], "The making or finding of a template"},
          {:branch, :duration, [:server], "The making of a branch"},
          {:backup, :duration, [:server], "The making of a backup"},
          {:restore, :duration, [], "The restoring of a backup"}
        ] do
      Telemetry.Metrics.summary([:pglite_ex, span, :stop, measurement],
        unit: {:native, :millisecond},
        tags: tags,
        description: description,
        # `first_answer` of a connection without an answer is `nil`.
        keep: fn _metadata, measurements -> is_integer(measurements[measurement]) end
      )
    end
  end

  defp failures do
    failed = fn metadata -> metadata.error != nil end

    for {span, event, tags, options, description} <- [
          {:startup, :exception, [:server], [], "Programs that failed to start"},
          {:server, :exception, [:server], [], "Programs that ended by themselves"},
          {:connection, :exception, [:server], [], "Processes of connections that crashed"},
          {:request, :stop, [:server, :verb], [keep: failed], "Requests that failed"},
          {:prepare, :stop, [:server, :name], [keep: failed], "Templates that were not made"},
          {:branch, :stop, [:server], [keep: failed], "Branches that were not made"},
          {:backup, :stop, [:server], [keep: failed], "Backups that were not made"},
          {:restore, :stop, [], [keep: failed], "Backups that were not restored"}
        ] do
      settings = [
        event_name: [:pglite_ex, span, event],
        measurement: :duration,
        tags: tags,
        description: description
      ]

      Telemetry.Metrics.counter([:pglite_ex, span, :failures], settings ++ options)
    end
  end

  defp bytes do
    for {measurement, description} <- [bytes_in: "from clients", bytes_out: "to clients"] do
      Telemetry.Metrics.sum([:pglite_ex, :connection, :stop, measurement],
        unit: :byte,
        tags: [:server],
        description: "Bytes #{description}, counted when their connection ends"
      )
    end
  end

  @doc false
  @spec execute(event) :: :ok
  def execute({name, measurements, metadata}) do
    if function_exported?(:telemetry, :execute, 3),
      do: :telemetry.execute([:pglite_ex | name], measurements, metadata),
      else: :ok
  end

  # Runs a function as a span; it returns its result and the metadata of the last event.
  @doc false
  @spec span([atom, ...], map, (() -> {result, map})) :: result when result: term
  def span(name, metadata, fun) do
    if function_exported?(:telemetry, :span, 3),
      do: :telemetry.span([:pglite_ex | name], metadata, fun),
      else: elem(fun.(), 0)
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
      metadata = Map.delete(metadata, :telemetry_span_context)
      "pglite_ex #{Enum.join(event, " ")} #{inspect(readable(measurements))} #{inspect(metadata)}"
    end)
  end

  defp readable(measurements) do
    for {key, value} <- measurements, key not in [:monotonic_time, :system_time], into: %{} do
      if key in [:duration, :first_answer] and is_integer(value),
        do: {key, "#{System.convert_time_unit(value, :native, :microsecond)} µs"},
        else: {key, value}
    end
  end
end
