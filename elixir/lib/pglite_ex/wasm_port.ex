defmodule PgliteEx.WasmPort do
  @moduledoc false
  # The process that owns the port to one running `pglite-port`.
  #
  # It starts the program, assigns connection numbers, passes frames from the program to the
  # process of their connection, and monitors those processes to tell the program when one has
  # ended. It never blocks: the program's hello arrives as a message, requests are answered when
  # their reply arrives, its own frames (`C` and `Q`) wait in an outbox while the program does not
  # read, and a `PgliteEx.Reporter` logs for it.
  # The bytes from a client do not pass through it: each connection's process writes them to the
  # port itself (`PgliteEx.Channel`), within its window. When the program is slow, only that
  # process waits.
  #
  # When the program ends, this process stops with the program's last lines on standard error in
  # its exit reason, and the supervisor starts both again. When this process ends, for any reason,
  # the port closes; the end of its standard input makes `pglite-port` stop.

  use GenServer

  alias PgliteEx.{
    Channel,
    Error,
    Frame,
    Options,
    Parts,
    Preparation,
    Program,
    Readiness,
    Reporter
  }

  alias PgliteEx.{Span, Telemetry}

  # How much longer than its `:shutdown_timeout` the program may take to stop by itself, and this process
  # after that, in milliseconds.
  @stop_margin 1_000
  @own_margin 2_000
  # How often a write is tried again while the port is busy, in milliseconds.
  @outbox_retry 5

  @typedoc "The server that the program belongs to."
  @type context :: %{
          registry: Registry.registry(),
          server: pid,
          options: Options.t(),
          reporter: Reporter.t()
        }

  @typedoc "The number of a new connection, and what its owner needs to send and receive frames."
  @type registration :: %{
          id: Frame.id(),
          port: port,
          window: pos_integer,
          max_payload: pos_integer
        }

  @doc "The supervisor waits until the program has ended by itself, or was killed."
  @spec child_spec(context) :: Supervisor.child_spec()
  def child_spec(%{options: options} = context) do
    shutdown = options.shutdown_timeout + @stop_margin + @own_margin
    Supervisor.child_spec(super(context), shutdown: shutdown)
  end

  @doc "Starts the program. It can be used when `PgliteEx.Readiness` says that it is ready."
  @spec start_link(context) :: GenServer.on_start()
  def start_link(context) do
    GenServer.start_link(__MODULE__, context, name: Parts.name(context.registry, __MODULE__))
  end

  @doc """
  Makes the caller the owner of a new connection number.

  The owner then receives `{PgliteEx.Channel, id, event}` messages, and the program is told
  when the owner is gone.
  """
  @spec register(pid) :: {:ok, registration} | {:error, Error.t()}
  def register(wasm_port), do: GenServer.call(wasm_port, :register, :infinity)

  @doc """
  Sends a request to the program and waits for its reply.

  Settings: `:timeout` in milliseconds, and `:server`, the name of the server in telemetry events.

  The error's code is the program's, `:timeout`, or `"57P01"` when the program is gone before it has
  replied. Raises `ArgumentError` for strings that a frame cannot carry (`PgliteEx.Frame.encode/1`).
  """
  @spec request(pid, String.t(), Frame.options(), timeout: timeout, server: term) ::
          {:ok, Frame.options()} | {:error, Error.t()}
  def request(wasm_port, verb, options \\ [], settings \\ []) do
    # Encoded here first, so that invalid strings raise in the caller, not in this server.
    _ = Frame.encode({:request, 0, verb, options})
    metadata = %{server: settings[:server], verb: verb}

    Telemetry.span([:request], metadata, fn ->
      case call(wasm_port, verb, options, Keyword.get(settings, :timeout, 5_000)) do
        {:ok, reply} -> {{:ok, reply}, Map.put(metadata, :error, nil)}
        {:error, error} -> {{:error, error}, Map.put(metadata, :error, error)}
      end
    end)
  end

  defp call(wasm_port, verb, options, timeout) do
    GenServer.call(wasm_port, {:request, verb, options}, timeout)
  catch
    :exit, {:timeout, _call} ->
      {:error, %Error{code: :timeout, message: "no reply to #{verb} within #{timeout} ms"}}

    :exit, _program_gone ->
      {:error, Error.from_reason(Channel.program_gone())}
  end

  @doc "The content of the program's hello: versions, limits, process id."
  @spec hello(pid) :: {:ok, %{String.t() => String.t()}} | {:error, Error.t()}
  def hello(wasm_port), do: GenServer.call(wasm_port, :hello, :infinity)

  @impl GenServer
  def init(context) do
    # So that `terminate/2` runs, which asks the program to stop.
    Process.flag(:trap_exit, true)

    state = %{
      context: context,
      program: nil,
      # The program's port; `nil` until its hello.
      port: nil,
      # From the hello until clients are let in.
      preparation: nil,
      # Whether clients were let in. The port is `nil` again when the program has ended.
      served?: false,
      span: nil,
      next_id: 1,
      connections: %{},
      requests: %{},
      outbox: :queue.new(),
      retrying?: false
    }

    {:ok, state, {:continue, :start}}
  end

  @impl GenServer
  def handle_continue(:start, %{context: context} = state) do
    Readiness.starting(context.registry)
    state = start_span(state, [:startup], %{})

    case Program.open(context.options) do
      {:ok, program} -> {:noreply, %{state | program: program}}
      {:error, error} -> {:stop, failure(error), state}
    end
  end

  @impl GenServer
  def handle_call(_call, _from, %{port: nil} = state),
    do: {:reply, {:error, Error.from_reason(Channel.starting())}, state}

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

  def handle_call(:hello, _from, state), do: {:reply, {:ok, state.program.hello}, state}

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

  def handle_info(message, state) do
    case Program.handle(state.program, message) do
      {:ok, program} -> {:noreply, %{log_news(state, message) | program: program}}
      {:ready, program} -> {:noreply, prepare(%{state | program: program, port: program.port})}
      {:error, error} -> {:stop, failure(error), state}
      :unknown -> handle_preparation(message, state)
    end
  end

  @impl GenServer
  def terminate(reason, %{context: context} = state) do
    reason = bare(reason)
    Preparation.stop(state.preparation)
    Readiness.failed(context.registry, reason)

    with {%Error{} = error, _stacktrace} <- reason, do: log(state, :error, error.message)
    if loses_data?(reason, state), do: log(state, :error, data_lost(context.options))
    state = stop_program(reason, state)

    for {id, owner} when is_pid(owner) <- state.connections,
        do: send(owner, {Channel, id, {:closed, Channel.program_gone()}})

    stop_span(reason, state)
  end

  # Whether clients had a cluster in memory, which a failure ends.
  defp loses_data?({%Error{}, _stacktrace}, %{context: %{options: options}} = state),
    do: state.served? and options.mode == :shared and options.data == nil

  defp loses_data?(_stopped, _state), do: false

  defp data_lost(options) do
    "the cluster was in memory, and its data is lost; " <>
      case options.on_data_loss do
        :restart -> "the server goes on with a new cluster (on_data_loss: :restart)"
        :stop -> "the server stops (on_data_loss: :stop)"
      end
  end

  defp prepare(%{context: %{options: options} = context} = state) do
    if Preparation.needed?(options) do
      Readiness.started(context.registry)
      %{state | preparation: Preparation.start_link(context)}
    else
      ready(state)
    end
  end

  defp handle_preparation(message, %{context: %{options: options}} = state) do
    case Preparation.handle(state.preparation, message, options) do
      :ok -> {:noreply, ready(%{state | preparation: nil})}
      {:error, error} -> {:stop, failure(error), state}
      :unknown -> handle_stray(message, state)
    end
  end

  defp ready(%{context: context, program: program} = state) do
    Readiness.ready(context.registry)
    metadata = %{os_pid: program.hello["pid"], hello: program.hello}
    Reporter.event(context.reporter, Span.stop(state.span, %{}, metadata))
    start_span(%{state | served?: true}, [:server], metadata)
  end

  # The registry has ended. This process cannot register again, so the supervisor restarts both.
  defp handle_stray({:EXIT, pid, reason}, state) when is_pid(pid), do: {:stop, reason, state}
  defp handle_stray(_message, state), do: {:noreply, state}

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
    options = Map.new(options)
    metadata = [connection: id, target: options["target"]]
    level = options["level"]

    if Options.logs?(state.context.options, level),
      do: log(state, logger_level(level), options["text"] || "", metadata)

    {:noreply, state}
  end

  defp handle_frame(unexpected, state) do
    {:stop, failure(Program.broke_protocol("unexpected frame #{inspect(unexpected)}")), state}
  end

  # After this side has closed a connection, frames for it may still arrive.
  defp pass_on(id, event, state) do
    case state.connections do
      %{^id => owner} when is_pid(owner) -> send(owner, {Channel, id, event})
      _closing_or_unknown -> :ok
    end

    {:noreply, state}
  end

  defp reply(:ok, options), do: {:ok, options}
  defp reply(:error, options), do: {:error, options |> Map.new() |> Error.from_reason()}

  defp log_news(%{program: program} = state, message) do
    for line <- Program.news(program, message), do: log(state, :info, line)
    state
  end

  defp log(%{context: context}, level, text, metadata \\ []) do
    metadata = [domain: [:pglite_ex], server: context.options.name] ++ metadata
    Reporter.log(context.reporter, level, text, metadata)
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
        # There is no message when a port is no longer busy.
        Process.send_after(self(), :write_outbox, @outbox_retry)
        %{state | retrying?: true}
    end
  rescue
    # The port has closed: its exit message is in the mailbox and ends this process.
    ArgumentError -> %{state | outbox: :queue.new()}
  end

  # What is left of the state when the program has ended: the connections that it has not closed.
  defp stop_program(_reason, %{program: nil} = state), do: state

  defp stop_program({%Error{code: :program_exited}, _stacktrace}, state), do: state

  # A program that violates the protocol, or has not sent its hello, cannot be asked to stop.
  defp stop_program({%Error{code: :protocol_violation}, _stacktrace}, state), do: kill(state)
  defp stop_program(_reason, %{port: nil} = state), do: kill(state)

  defp stop_program(_reason, %{context: %{options: options}} = state) do
    {id, state} = take_id(state)
    timeout = options.shutdown_timeout + @stop_margin
    timer = Process.send_after(self(), :stop_timeout, timeout)
    state = state |> write({:request, id, "shutdown", []}) |> await_end(timeout)
    Process.cancel_timer(timer)
    state
  end

  # Sessions end with what the program has still to say to their clients: subscribers receive the rest.
  defp await_end(%{port: port} = state, timeout) do
    receive do
      {^port, {:exit_status, _status}} ->
        state

      {:EXIT, ^port, _reason} ->
        state

      {^port, {:data, _bytes}} = message ->
        case handle_info(message, state) do
          {:noreply, state} -> await_end(state, timeout)
          {:stop, _reason, state} -> kill(state)
        end

      {{:owner_down, _id}, _monitor, :process, _pid, _reason} = message ->
        {:noreply, state} = handle_info(message, state)
        await_end(state, timeout)

      :write_outbox ->
        await_end(write_outbox(%{state | retrying?: false}), timeout)

      :stop_timeout ->
        log(state, :warning, "pglite-port has not stopped in #{timeout} ms and is killed")
        kill(state)
    end
  end

  defp kill(state) do
    Program.kill(state.program)
    state
  end

  # With a stack trace, an exit reason is reported as an exception, message and all. As a reason
  # to shut down, it is not logged by the ending process itself, which would wait for Logger.
  defp failure(error) do
    {:current_stacktrace, [_process_info | stacktrace]} =
      Process.info(self(), :current_stacktrace)

    {:shutdown, {error, stacktrace}}
  end

  defp bare({:shutdown, reason}), do: reason
  defp bare(reason), do: reason

  defp start_span(%{context: %{options: options, reporter: reporter}} = state, event, metadata) do
    metadata = Map.merge(%{server: options.name, mode: options.mode}, metadata)
    {span, event} = Span.start(event, metadata)
    Reporter.event(reporter, event)
    %{state | span: span}
  end

  defp stop_span(reason, %{span: span, context: context}) do
    event =
      case reason do
        {reason, stacktrace} when is_list(stacktrace) ->
          Span.exception(span, %{}, :exit, reason, stacktrace)

        reason ->
          Span.stop(span, %{}, %{reason: reason})
      end

    Reporter.event(context.reporter, event)
  end
end
