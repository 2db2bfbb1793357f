defmodule PgliteEx.Readiness do
  @moduledoc false
  # Tells waiting processes when a server's program can be used.
  #
  # There are two stages. A program that has *started* takes requests, and the connections with which
  # its database is made and the function of `after_start:` works (`PgliteEx.Preparation`). When that
  # is done, it is *ready*, and clients are let in.
  #
  # The owner of the port reports that it starts its program, the stages, and why it failed. This
  # process outlives it, so that a caller can wait while the program is restarted.

  use GenServer

  alias PgliteEx.{Channel, Error, Parts}

  @opaque request :: :gen_server.request_id()

  @type stage :: :started | :ready

  @doc "Starts the process for the server with this registry."
  @spec start_link(Registry.registry()) :: GenServer.on_start()
  def start_link(registry) do
    GenServer.start_link(__MODULE__, nil, name: Parts.name(registry, __MODULE__))
  end

  @doc """
  Waits until the program has reached a stage, for at most `timeout` milliseconds; returns the port's
  owner.

  The error is `57P03`, PostgreSQL's `cannot_connect_now`, when the deadline has passed, and `57P01`
  when there is no server, which is also what `nil` stands for.
  """
  @spec await(Registry.registry() | nil, timeout, stage) ::
          {:ok, wasm_port :: pid} | {:error, Error.t()}
  def await(registry, timeout, stage \\ :ready) do
    readiness = registry && Parts.whereis(registry, __MODULE__)
    # The deadline is kept there, where it is known why the program is not ready.
    if readiness,
      do: GenServer.call(readiness, {:await, timeout, stage}, :infinity),
      else: no_server()
  catch
    :exit, _server_gone -> no_server()
  end

  @doc """
  Does the same without waiting: the outcome comes as a message, which `handle_outcome/2` takes.
  """
  @spec request(Registry.registry() | nil, timeout, stage) ::
          {:ok, request} | {:error, Error.t()}
  def request(registry, timeout, stage) do
    case registry && Parts.whereis(registry, __MODULE__) do
      nil -> no_server()
      readiness -> {:ok, :gen_server.send_request(readiness, {:await, timeout, stage})}
    end
  end

  @doc "The outcome of a request, if the message is about it; `:unknown` otherwise."
  @spec handle_outcome(request, term) ::
          {:ok, wasm_port :: pid} | {:error, Error.t()} | :unknown
  def handle_outcome(request, message) do
    case :gen_server.check_response(message, request) do
      {:reply, outcome} -> outcome
      {:error, {_server_gone, _readiness}} -> no_server()
      :no_reply -> :unknown
    end
  end

  defp no_server, do: {:error, Error.from_reason(Channel.program_gone())}

  @doc """
  Waits for the outcome of the first start.

  The start function of a child: `:ignore` when the program is ready. As a temporary child that
  was ignored is not started again, a supervisor waits when it starts, and not when it restarts its
  children.
  """
  @spec first_start(Registry.registry()) :: :ignore | {:error, reason :: term}
  def first_start(registry) do
    GenServer.call(Parts.name(registry, __MODULE__), :first_start, :infinity)
  end

  @doc "Reports that the calling process starts the program."
  @spec starting(Registry.registry()) :: :ok
  def starting(registry), do: report(registry, :starting)

  @doc "Reports that the program of the calling process has started, and clients have to wait."
  @spec started(Registry.registry()) :: :ok
  def started(registry), do: report(registry, :started)

  @doc "Reports that the program of the calling process is ready."
  @spec ready(Registry.registry()) :: :ok
  def ready(registry), do: report(registry, :ready)

  @doc "Reports that the program of the calling process has ended, and why."
  @spec failed(Registry.registry(), reason :: term) :: :ok
  def failed(registry, reason), do: report(registry, {:failed, reason})

  defp report(registry, what),
    do: GenServer.cast(Parts.name(registry, __MODULE__), {self(), what})

  @impl GenServer
  def init(nil) do
    {:ok,
     %{
       # The port's owner, from the start of its program to its end.
       wasm_port: nil,
       monitor: nil,
       # `nil` until it has started.
       stage: nil,
       # Why the last program has ended.
       failure: nil,
       # Callers with their timers and the stage that they wait for, by a reference.
       waiting: %{},
       starter: nil
     }}
  end

  @impl GenServer
  def handle_call({:await, _timeout, stage}, _from, %{stage: reached} = state)
      when reached == :ready or reached == stage,
      do: {:reply, {:ok, state.wasm_port}, state}

  def handle_call({:await, timeout, stage}, from, state) do
    reference = make_ref()

    timer =
      if timeout != :infinity,
        do: Process.send_after(self(), {:late, reference, timeout}, timeout)

    {:noreply, put_in(state.waiting[reference], {from, timer, stage})}
  end

  def handle_call(:first_start, _from, %{stage: :ready} = state), do: {:reply, :ignore, state}

  def handle_call(:first_start, _from, %{failure: reason} = state) when reason != nil,
    do: {:reply, {:error, reason}, state}

  def handle_call(:first_start, from, state), do: {:noreply, %{state | starter: from}}

  @impl GenServer
  def handle_cast({wasm_port, :starting}, state) do
    {:noreply, %{state | wasm_port: wasm_port, monitor: Process.monitor(wasm_port)}}
  end

  def handle_cast({wasm_port, :started}, %{wasm_port: wasm_port} = state) do
    {served, waiting} =
      Enum.split_with(state.waiting, fn {_reference, {_from, _timer, stage}} ->
        stage == :started
      end)

    admit(served, wasm_port)
    {:noreply, %{state | stage: :started, waiting: Map.new(waiting)}}
  end

  def handle_cast({wasm_port, :ready}, %{wasm_port: wasm_port} = state) do
    admit(state.waiting, wasm_port)
    if state.starter, do: GenServer.reply(state.starter, :ignore)
    {:noreply, %{state | stage: :ready, failure: nil, waiting: %{}, starter: nil}}
  end

  def handle_cast({wasm_port, {:failed, reason}}, %{wasm_port: wasm_port} = state),
    do: {:noreply, ended(reason, state)}

  def handle_cast({_predecessor, _report}, state), do: {:noreply, state}

  @impl GenServer
  def handle_info({:late, reference, timeout}, state) do
    case pop_in(state.waiting[reference]) do
      {{from, _timer, _stage}, state} ->
        GenServer.reply(from, {:error, not_ready(timeout, state)})
        {:noreply, state}

      # It was ready just then.
      {nil, state} ->
        {:noreply, state}
    end
  end

  # Killed, without a report.
  def handle_info({:DOWN, monitor, :process, _pid, reason}, %{monitor: monitor} = state),
    do: {:noreply, ended(reason, state)}

  def handle_info(_stray_message, state), do: {:noreply, state}

  defp admit(waiting, wasm_port) do
    for {_reference, {from, timer, _stage}} <- waiting do
      if timer, do: Process.cancel_timer(timer)
      GenServer.reply(from, {:ok, wasm_port})
    end
  end

  defp ended(reason, state) do
    Process.demonitor(state.monitor, [:flush])
    if state.starter, do: GenServer.reply(state.starter, {:error, reason})
    %{state | wasm_port: nil, monitor: nil, stage: nil, failure: reason, starter: nil}
  end

  defp not_ready(timeout, state) do
    what =
      if state.stage == :started,
        do: "its after_start: has not returned",
        else: "was not ready"

    message = "pglite-port is being started and #{what} within #{timeout} ms"
    %Error{code: "57P03", message: message <> last_failure(state.failure)}
  end

  defp last_failure(nil), do: ""

  defp last_failure({%Error{} = error, _stacktrace}),
    do: "; before that, " <> Exception.message(error)

  defp last_failure(reason), do: "; before that, it ended with #{inspect(reason)}"
end
