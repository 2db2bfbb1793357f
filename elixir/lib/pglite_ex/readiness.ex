defmodule PgliteEx.Readiness do
  @moduledoc false
  # Tells waiting processes when a server's program is ready for connections and requests.
  #
  # The owner of the port reports that it starts its program, that the program is ready, and why it
  # failed. This process outlives it, so that a caller can wait while the program is restarted.

  use GenServer

  alias PgliteEx.{Channel, Error, Parts}

  @opaque request :: :gen_server.request_id()

  @doc "Starts the process for the server with this registry."
  @spec start_link(Registry.registry()) :: GenServer.on_start()
  def start_link(registry) do
    GenServer.start_link(__MODULE__, nil, name: Parts.name(registry, __MODULE__))
  end

  @doc """
  Waits until the program is ready, for at most `timeout` milliseconds; returns the port's owner.

  The error is `57P03`, PostgreSQL's `cannot_connect_now`, when the deadline has passed, and `57P01`
  when there is no server, which is also what `nil` stands for.
  """
  @spec await(Registry.registry() | nil, timeout) :: {:ok, wasm_port :: pid} | {:error, Error.t()}
  def await(registry, timeout) do
    readiness = registry && Parts.whereis(registry, __MODULE__)
    # The deadline is kept there, where it is known why the program is not ready.
    if readiness, do: GenServer.call(readiness, {:await, timeout}, :infinity), else: no_server()
  catch
    :exit, _server_gone -> no_server()
  end

  @doc """
  Does the same without waiting: the outcome comes as a message, which `handle_outcome/2` takes.
  """
  @spec request(Registry.registry() | nil, timeout) :: {:ok, request} | {:error, Error.t()}
  def request(registry, timeout) do
    case registry && Parts.whereis(registry, __MODULE__) do
      nil -> no_server()
      readiness -> {:ok, :gen_server.send_request(readiness, {:await, timeout})}
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
       ready?: false,
       # Why the last program has ended.
       failure: nil,
       # Callers with their timers, by a reference.
       waiting: %{},
       starter: nil
     }}
  end

  @impl GenServer
  def handle_call({:await, _timeout}, _from, %{ready?: true} = state),
    do: {:reply, {:ok, state.wasm_port}, state}

  def handle_call({:await, timeout}, from, state) do
    reference = make_ref()

    timer =
      if timeout != :infinity,
        do: Process.send_after(self(), {:late, reference, timeout}, timeout)

    {:noreply, put_in(state.waiting[reference], {from, timer})}
  end

  def handle_call(:first_start, _from, %{ready?: true} = state), do: {:reply, :ignore, state}

  def handle_call(:first_start, _from, %{failure: reason} = state) when reason != nil,
    do: {:reply, {:error, reason}, state}

  def handle_call(:first_start, from, state), do: {:noreply, %{state | starter: from}}

  @impl GenServer
  def handle_cast({wasm_port, :starting}, state) do
    {:noreply, %{state | wasm_port: wasm_port, monitor: Process.monitor(wasm_port)}}
  end

  def handle_cast({wasm_port, :ready}, %{wasm_port: wasm_port} = state) do
    for {_reference, {from, timer}} <- state.waiting do
      if timer, do: Process.cancel_timer(timer)
      GenServer.reply(from, {:ok, wasm_port})
    end

    if state.starter, do: GenServer.reply(state.starter, :ignore)
    {:noreply, %{state | ready?: true, failure: nil, waiting: %{}, starter: nil}}
  end

  def handle_cast({wasm_port, {:failed, reason}}, %{wasm_port: wasm_port} = state),
    do: {:noreply, ended(reason, state)}

  def handle_cast({_predecessor, _report}, state), do: {:noreply, state}

  @impl GenServer
  def handle_info({:late, reference, timeout}, state) do
    case pop_in(state.waiting[reference]) do
      {{from, _timer}, state} ->
        GenServer.reply(from, {:error, not_ready(timeout, state.failure)})
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

  defp ended(reason, state) do
    Process.demonitor(state.monitor, [:flush])
    if state.starter, do: GenServer.reply(state.starter, {:error, reason})
    %{state | wasm_port: nil, monitor: nil, ready?: false, failure: reason, starter: nil}
  end

  defp not_ready(timeout, failure) do
    message = "pglite-port is being started and was not ready within #{timeout} ms"
    %Error{code: "57P03", message: message <> last_failure(failure)}
  end

  defp last_failure(nil), do: ""

  defp last_failure({%Error{} = error, _stacktrace}),
    do: "; before that, " <> Exception.message(error)

  defp last_failure(reason), do: "; before that, it ended with #{inspect(reason)}"
end
