defmodule PgliteEx.Reporter do
  @moduledoc false
  # Passes on to Logger and to telemetry handlers what the owner of the port has to report.
  #
  # Logger makes its callers wait when it is behind, and telemetry runs handlers in the process that
  # emits an event. The owner of the port serves all connections and may wait for neither. What it
  # reports waits in the mailbox of this process. Log lines are admitted up to a number of bytes;
  # the rest is dropped and counted. Events are always admitted: a program has four in its life.

  # A stop of the server waits this long for a Logger that is behind, in milliseconds.
  use GenServer, shutdown: 1_000

  require Logger

  alias PgliteEx.Telemetry

  # Bytes of log lines that may wait. A line is at most as long as a frame, 1 MiB.
  @largest_backlog 2_097_152
  # What a line takes besides its text.
  @line_overhead 512

  @metadata [domain: [:pglite_ex]]

  # The counters.
  @waiting 1
  @dropped 2

  @enforce_keys [:name, :counters]
  defstruct [:name, :counters]

  @typedoc "What is needed to report, and to start the process that passes reports on."
  @type t :: %__MODULE__{name: GenServer.name(), counters: :atomics.atomics_ref()}

  @spec new(GenServer.name()) :: t
  def new(name), do: %__MODULE__{name: name, counters: :atomics.new(2, signed: true)}

  @spec start_link(t) :: GenServer.on_start()
  def start_link(%__MODULE__{} = reporter),
    do: GenServer.start_link(__MODULE__, reporter, name: reporter.name)

  @doc "Reports a log line, or drops it when too many wait; never blocks."
  @spec log(t, Logger.level(), String.t(), keyword) :: :ok
  def log(%__MODULE__{counters: counters} = reporter, level, text, metadata) do
    size = byte_size(text) + @line_overhead

    if :atomics.add_get(counters, @waiting, size) <= @largest_backlog do
      report(reporter, {:log, size, level, text, metadata})
    else
      :atomics.sub(counters, @waiting, size)
      :atomics.add(counters, @dropped, 1)
    end
  end

  @doc "Reports a telemetry event; never blocks."
  @spec event(t, Telemetry.event()) :: :ok
  def event(%__MODULE__{} = reporter, event), do: report(reporter, {:event, event})

  defp report(%{name: name}, what), do: GenServer.cast(name, what)

  @impl GenServer
  def init(reporter) do
    # So that the order to stop is read after the reports that came before it.
    Process.flag(:trap_exit, true)
    :atomics.put(reporter.counters, @waiting, 0)
    {:ok, reporter}
  end

  @impl GenServer
  def handle_cast({:log, size, level, text, metadata}, %{counters: counters} = reporter) do
    Logger.log(level, text, metadata)
    :atomics.sub(counters, @waiting, size)

    case :atomics.exchange(counters, @dropped, 0) do
      0 -> :ok
      lines -> Logger.warning("#{lines} log lines were dropped: Logger was behind", @metadata)
    end

    {:noreply, reporter}
  end

  def handle_cast({:event, event}, reporter) do
    Telemetry.execute(event)
    {:noreply, reporter}
  end

  @impl GenServer
  def handle_info({:EXIT, _registry, reason}, reporter), do: {:stop, reason, reporter}
  def handle_info(_stray_message, reporter), do: {:noreply, reporter}
end
