defmodule PgliteEx.WasmPort do
  @moduledoc """
  The process that owns the port to one running `pglite-port`.

  It starts the program, hands out connection numbers, passes frames from the program to the
  process of their connection, and watches those processes so that the program learns when one
  is gone. It never blocks: requests are answered when their reply arrives, and what it writes
  itself (`C` and `Q` frames) waits in an outbox while the program does not read.
  The bytes of a connection do not pass through it on their way in: each connection's process
  writes them to the port itself (`PgliteEx.Channel`), within its window, and is the only one
  that is held up when the program is slow.

  When the program ends, this process stops with the program's last lines on standard error in
  its exit reason, and the supervisor starts both anew. When this process ends, for whatever
  reason, the port closes, and a `pglite-port` whose standard input has ended stops by itself.
  """

  use GenServer, shutdown: 8_000

  require Logger

  alias PgliteEx.{Channel, Error, Frame, Options, Program, Stderr, Telemetry}

  # How long the program may take to stop by itself, in milliseconds. It gives its sessions up to
  # five seconds.
  @stop_timeout 6_000
  # How often a write is tried again while the port is busy, in milliseconds.
  @outbox_retry 5
  @stderr_trim_interval 60_000

  @typedoc "What a process needs to talk on a connection of its own."
  @type registration :: %{
          id: Frame.id(),
          port: port,
          window: pos_integer,
          max_payload: pos_integer
        }

  @doc "Starts the program and waits for its hello."
  @spec start_link(Options.t()) :: GenServer.on_start()
  def start_link(%Options{} = options), do: GenServer.start_link(__MODULE__, options)

  @doc """
  Makes the caller the owner of a new connection number.

  The owner then receives `{PgliteEx.Channel, id, event}` messages, and the program is told
  when the owner is gone.
  """
  @spec register(pid) :: {:ok, registration}
  def register(wasm_port), do: GenServer.call(wasm_port, :register, :infinity)

  @doc """
  Sends a request to the program and waits for its reply, for at most `timeout` milliseconds.

  The error's code is the program's, `:timeout`, or `"57P01"` when the program is gone before it has
  replied. Raises `ArgumentError` for strings that a frame cannot carry (`PgliteEx.Frame.encode/1`).
  """
  @spec request(pid, String.t(), Frame.options(), timeout) ::
          {:ok, Frame.options()} | {:error, Error.t()}
  def request(wasm_port, verb, options \\ [], timeout \\ 5_000) do
    # Tried here, so that what cannot be encoded is the caller's failure and not everybody's.
    _ = Frame.encode({:request, 0, verb, options})
    GenServer.call(wasm_port, {:request, verb, options}, timeout)
  catch
    :exit, {:timeout, _call} ->
      {:error, %Error{code: :timeout, message: "no reply to #{verb} within #{timeout} ms"}}

    :exit, _program_gone ->
      {:error, Error.from_reason(Channel.program_gone())}
  end

  @doc "What the program said of itself in its hello: versions, limits, process id."
  @spec hello(pid) :: %{String.t() => String.t()}
  def hello(wasm_port), do: GenServer.call(wasm_port, :hello, :infinity)

  @impl GenServer
  def init(options) do
    # So that `terminate/2` runs and stops the program in an orderly way.
    Process.flag(:trap_exit, true)
    started_at = System.monotonic_time()

    case Program.start(options) do
      {:ok, program} ->
        Process.send_after(self(), :trim_stderr, @stderr_trim_interval)
        metadata = telemetry_metadata(options, program)
        duration = System.monotonic_time() - started_at
        Telemetry.execute([:server, :start], %{duration: duration}, metadata)

        {:ok,
         %{
           options: options,
           program: program,
           port: program.port,
           started_at: started_at,
           next_id: 1,
           connections: %{},
           requests: %{},
           outbox: :queue.new(),
           retrying?: false
         }}

      {:error, error} ->
        {:stop, failure(error)}
    end
  end

  @impl GenServer
  def handle_call(:register, {owner, _tag}, state) do
    {id, state} = take_id(state)
    :erlang.monitor(:process, owner, tag: {:owner_down, id})

    registration = %{
      id: id,
      port: state.port,
      window: state.program.window,
      max_payload: state.program.max_payload
    }

    {:reply, {:ok, registration}, put_in(state.connections[id], owner)}
  end

  def handle_call({:request, verb, options}, from, state) do
    {id, state} = take_id(state)
    {:noreply, write(put_in(state.requests[id], from), {:request, id, verb, options})}
  end

  def handle_call(:hello, _from, state), do: {:reply, state.program.hello, state}

  @impl GenServer
  def handle_info({port, {:data, bytes}}, %{port: port} = state) do
    case Frame.decode(bytes) do
      {:ok, frame} -> handle_frame(frame, state)
      {:error, reason} -> {:stop, failure(Program.broke_protocol(reason)), state}
    end
  end

  def handle_info({port, {:exit_status, status}}, %{port: port} = state) do
    {:stop, failure(Program.ended(state.program, status)), %{state | port: nil}}
  end

  # A write that found the program's end of the pipe closed ends the port before its exit status
  # can be delivered.
  def handle_info({:EXIT, port, reason}, %{port: port} = state) do
    {:stop, failure(Program.ended(state.program, reason)), %{state | port: nil}}
  end

  def handle_info({{:owner_down, id}, _monitor, :process, _pid, _reason}, state) do
    if is_map_key(state.connections, id),
      do: {:noreply, write(put_in(state.connections[id], :closing), {:close, id})},
      else: {:noreply, state}
  end

  def handle_info(:write_outbox, state) do
    {:noreply, write_outbox(%{state | retrying?: false})}
  end

  def handle_info(:trim_stderr, state) do
    Stderr.trim(state.program.stderr)
    Process.send_after(self(), :trim_stderr, @stderr_trim_interval)
    {:noreply, state}
  end

  def handle_info(_stray_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, state) do
    stop_program(reason, state)
    duration = System.monotonic_time() - state.started_at
    metadata = Map.put(telemetry_metadata(state.options, state.program), :reason, reason)
    Telemetry.execute([:server, :stop], %{duration: duration}, metadata)
  end

  defp handle_frame({:data, id, bytes}, state), do: pass_on(id, {:data, bytes}, state)
  defp handle_frame({:window, id, bytes}, state), do: pass_on(id, {:window, bytes}, state)

  defp handle_frame({:closed, id, options}, state) do
    {:noreply, state} = pass_on(id, {:closed, Map.new(options)}, state)
    {:noreply, %{state | connections: Map.delete(state.connections, id)}}
  end

  defp handle_frame({:reply, id, result, options}, state) do
    {from, requests} = Map.pop(state.requests, id)
    if from, do: GenServer.reply(from, reply(result, options))
    {:noreply, %{state | requests: requests}}
  end

  defp handle_frame({:log, id, options}, state) do
    log(id, Map.new(options), state.options.name)
    {:noreply, state}
  end

  defp handle_frame(unexpected, state) do
    {:stop, failure(Program.broke_protocol("unexpected frame #{inspect(unexpected)}")), state}
  end

  # Frames may still be on their way for a connection that was closed here.
  defp pass_on(id, event, state) do
    case state.connections do
      %{^id => owner} when is_pid(owner) -> send(owner, {Channel, id, event})
      _closing_or_unknown -> :ok
    end

    {:noreply, state}
  end

  defp reply(:ok, options), do: {:ok, options}
  defp reply(:error, options), do: {:error, options |> Map.new() |> Error.from_reason()}

  defp log(id, options, server) do
    metadata = [domain: [:pglite_ex], server: server, connection: id, target: options["target"]]
    Logger.log(logger_level(options["level"]), options["text"] || "", metadata)
  end

  defp logger_level("error"), do: :error
  defp logger_level("warn"), do: :warning
  defp logger_level("info"), do: :info
  defp logger_level(_debug_or_trace), do: :debug

  defp take_id(%{next_id: id} = state) do
    next = if id == 0xFFFFFFFF, do: 1, else: id + 1
    state = %{state | next_id: next}

    if is_map_key(state.connections, id) or is_map_key(state.requests, id),
      do: take_id(state),
      else: {id, state}
  end

  defp write(state, frame),
    do: write_outbox(%{state | outbox: :queue.in(Frame.encode(frame), state.outbox)})

  defp write_outbox(%{retrying?: true} = state), do: state

  defp write_outbox(state) do
    with {:value, frame} <- :queue.peek(state.outbox),
         true <- Port.command(state.port, frame, [:nosuspend]) do
      write_outbox(%{state | outbox: :queue.drop(state.outbox)})
    else
      :empty ->
        state

      false ->
        # A port does not tell when it stops being busy.
        Process.send_after(self(), :write_outbox, @outbox_retry)
        %{state | retrying?: true}
    end
  rescue
    # The port has closed: its exit message is in the mailbox and ends this process.
    ArgumentError -> %{state | outbox: :queue.new()}
  end

  defp stop_program(_reason, %{port: nil}), do: :ok

  # A program that does not keep to the protocol cannot be asked.
  defp stop_program({%Error{code: :protocol_violation}, _stacktrace}, state),
    do: Program.kill(state.program)

  defp stop_program(_reason, state) do
    {id, state} = take_id(state)
    timer = Process.send_after(self(), :stop_timeout, @stop_timeout)
    state |> write({:request, id, "shutdown", []}) |> await_end()
    Process.cancel_timer(timer)
  end

  defp await_end(%{port: port} = state) do
    receive do
      {^port, {:exit_status, _status}} ->
        :ok

      {:EXIT, ^port, _reason} ->
        :ok

      :write_outbox ->
        await_end(write_outbox(%{state | retrying?: false}))

      :stop_timeout ->
        Logger.warning("pglite-port has not stopped within #{@stop_timeout} ms and is killed")
        Program.kill(state.program)
    end
  end

  # With a stack trace, an exit reason is reported as an exception, message and all.
  defp failure(error) do
    {:current_stacktrace, [_process_info | stacktrace]} =
      Process.info(self(), :current_stacktrace)

    {error, stacktrace}
  end

  defp telemetry_metadata(options, program) do
    %{
      server: options.name,
      mode: options.mode,
      os_pid: program.hello["pid"],
      hello: program.hello
    }
  end
end
