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

  use GenServer, shutdown: 5_000

  require Logger

  alias PgliteEx.{Channel, Error, Executable, Frame, Options, Stderr, Telemetry}

  @protocol "1"
  @start_timeout 30_000
  @stop_timeout 2_000
  @outbox_retry 5
  @stderr_trim_interval 60_000
  @stderr_lines 20

  # What the port itself queues for a program that does not read, before writers are held up.
  @busy_limits {262_144, 524_288}

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

  @doc "Sends a request to the program and waits for its reply, for at most `timeout` milliseconds."
  @spec request(pid, String.t(), Frame.options(), timeout) ::
          {:ok, %{String.t() => String.t()}} | {:error, Error.t()}
  def request(wasm_port, verb, options \\ [], timeout \\ 5_000) do
    GenServer.call(wasm_port, {:request, verb, options}, timeout)
  catch
    :exit, {:timeout, _call} ->
      {:error, %Error{code: :timeout, message: "no reply to #{verb} within #{timeout} ms"}}
  end

  @doc "What the program said of itself in its hello: versions, limits, process id."
  @spec hello(pid) :: %{String.t() => String.t()}
  def hello(wasm_port), do: GenServer.call(wasm_port, :hello, :infinity)

  @doc """
  The name and the options with which `Port.open/2` starts the program.

  ## Examples

      iex> options = PgliteEx.Options.new!(mode: :isolated, max_connections: 5)
      iex> {{:spawn_executable, "/bin/sh"}, settings} =
      ...>   PgliteEx.WasmPort.port_settings(options, "/opt/pglite-port", "/tmp/stderr")
      iex> Enum.take(settings[:args], 4)
      ["-c", ~S(exec "$0" "$@" 2>>"$PGLITE_EX_STDERR"), "/opt/pglite-port", "port"]
      iex> Enum.drop(settings[:args], 4)
      ["--mode", "isolated", "--max-connections", "5", "--warm", "0", "--log", "warn"]
  """
  @spec port_settings(Options.t(), Path.t(), Path.t()) ::
          {{:spawn_executable, Path.t()}, keyword | list}
  def port_settings(%Options{} = options, executable, stderr_path) do
    {{:spawn_executable, "/bin/sh"},
     [
       :binary,
       :exit_status,
       :use_stdio,
       :hide,
       packet: 4,
       busy_limits_port: @busy_limits,
       env: [{'PGLITE_EX_STDERR', String.to_charlist(stderr_path)}],
       args:
         ["-c", ~S(exec "$0" "$@" 2>>"$PGLITE_EX_STDERR"), executable, "port"] ++
           arguments(options)
     ]}
  end

  defp arguments(options) do
    directories = [
      {"--pglite-dir", options.pglite_dir || Executable.installed_pglite_dir()},
      {"--cache-dir", options.cache_dir}
    ]

    [
      "--mode",
      Atom.to_string(options.mode),
      "--max-connections",
      Integer.to_string(options.max_connections),
      "--warm",
      Integer.to_string(options.warm),
      "--log",
      Atom.to_string(options.log_level)
    ] ++ for {flag, path} <- directories, path != nil, word <- [flag, path], do: word
  end

  @impl GenServer
  def init(options) do
    Process.flag(:trap_exit, true)
    started_at = System.monotonic_time()

    with {:ok, executable} <- Executable.find(options.executable),
         {:ok, stderr} <- open_stderr(),
         {name, settings} = port_settings(options, executable, stderr.path),
         port = Port.open(name, settings),
         {:ok, hello} <- await_hello(port, stderr) do
      Stderr.unlink(stderr)
      Process.send_after(self(), :trim_stderr, @stderr_trim_interval)

      Telemetry.execute(
        [:server, :start],
        %{duration: System.monotonic_time() - started_at},
        Map.merge(telemetry_metadata(options), %{os_pid: hello["pid"], hello: hello})
      )

      {:ok,
       %{
         options: options,
         port: port,
         os_pid: hello["pid"],
         hello: hello,
         stderr: stderr,
         started_at: started_at,
         next_id: 1,
         connections: %{},
         requests: %{},
         outbox: :queue.new(),
         retrying?: false
       }}
    else
      {:error, %Error{} = error} -> {:stop, {error, []}}
    end
  end

  @impl GenServer
  def handle_call(:register, {owner, _tag}, state) do
    {id, state} = take_id(state)
    :erlang.monitor(:process, owner, tag: {:owner_down, id})

    registration = %{
      id: id,
      port: state.port,
      window: String.to_integer(state.hello["window"]),
      # Of a frame's length, kind and id take five bytes.
      max_payload: String.to_integer(state.hello["max_frame"]) - 5
    }

    {:reply, {:ok, registration}, put_in(state.connections[id], owner)}
  end

  def handle_call({:request, verb, options}, from, state) do
    {id, state} = take_id(state)
    {:noreply, write(put_in(state.requests[id], from), {:request, id, verb, options})}
  end

  def handle_call(:hello, _from, state), do: {:reply, state.hello, state}

  @impl GenServer
  def handle_info({port, {:data, bytes}}, %{port: port} = state) do
    case Frame.decode(bytes) do
      {:ok, frame} -> handle_frame(frame, state)
      {:error, reason} -> {:stop, {protocol_error(reason), []}, state}
    end
  end

  def handle_info({port, {:exit_status, status}}, %{port: port} = state) do
    {:stop, {program_exited(status, state.stderr), []}, %{state | port: nil}}
  end

  # A write that found the program's end of the pipe closed ends the port before its exit status
  # can be delivered.
  def handle_info({:EXIT, port, reason}, %{port: port} = state) do
    {:stop, {program_exited(reason, state.stderr), []}, %{state | port: nil}}
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
    Stderr.trim(state.stderr)
    Process.send_after(self(), :trim_stderr, @stderr_trim_interval)
    {:noreply, state}
  end

  def handle_info(_stray_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, state) do
    if state.port, do: stop_program(state)

    Telemetry.execute(
      [:server, :stop],
      %{duration: System.monotonic_time() - state.started_at},
      Map.merge(telemetry_metadata(state.options), %{os_pid: state.os_pid, reason: reason})
    )
  end

  defp handle_frame({:data, id, bytes}, state), do: pass_on(id, {:data, bytes}, state)
  defp handle_frame({:window, id, bytes}, state), do: pass_on(id, {:window, bytes}, state)

  defp handle_frame({:closed, id, options}, state) do
    {:noreply, state} = pass_on(id, {:closed, Map.new(options)}, state)
    {:noreply, %{state | connections: Map.delete(state.connections, id)}}
  end

  defp handle_frame({:reply, id, result, options}, state) do
    {from, requests} = Map.pop(state.requests, id)
    if from, do: GenServer.reply(from, reply(result, Map.new(options)))
    {:noreply, %{state | requests: requests}}
  end

  defp handle_frame({:log, id, options}, state) do
    log(id, Map.new(options), state.options.name)
    {:noreply, state}
  end

  defp handle_frame(unexpected, state) do
    {:stop, {protocol_error("unexpected frame #{inspect(unexpected)}"), []}, state}
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

  defp reply(:error, options),
    do: {:error, %Error{code: options["code"], message: options["message"]}}

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

  defp open_stderr do
    with {:error, posix} <- Stderr.open() do
      message = "cannot create a file in #{System.tmp_dir()}: #{:file.format_error(posix)}"
      {:error, %Error{code: posix, message: message}}
    end
  end

  defp await_hello(port, stderr) do
    receive do
      {^port, {:data, bytes}} ->
        check_hello(Frame.decode(bytes))

      {^port, {:exit_status, status}} ->
        Stderr.unlink(stderr)
        {:error, program_exited(status, stderr)}

      {:EXIT, ^port, reason} ->
        Stderr.unlink(stderr)
        {:error, program_exited(reason, stderr)}
    after
      @start_timeout ->
        Stderr.unlink(stderr)
        message = "pglite-port said nothing for #{@start_timeout} ms" <> last_words(stderr)
        {:error, %Error{code: :timeout, message: message}}
    end
  end

  defp check_hello({:ok, {:hello, 0, options}}) do
    case Map.new(options) do
      %{"protocol" => @protocol, "window" => _, "max_frame" => _, "pid" => _} = hello ->
        {:ok, hello}

      hello ->
        {:error,
         protocol_error("""
         it speaks protocol #{inspect(hello["protocol"])} and this library speaks #{@protocol}; \
         run `mix pglite_ex.install` to get the program of this library's version\
         """)}
    end
  end

  defp check_hello({:ok, frame}),
    do: {:error, protocol_error("#{inspect(frame)} instead of hello")}

  defp check_hello({:error, reason}), do: {:error, protocol_error(reason)}

  defp stop_program(%{port: port} = state) do
    write(%{state | outbox: :queue.new()}, {:request, 0, "shutdown", []})

    receive do
      {^port, {:exit_status, _status}} -> :ok
      {:EXIT, ^port, _reason} -> :ok
    after
      @stop_timeout ->
        # Still ours and not yet reaped, as its exit status has not come: the number is not reused.
        System.cmd("kill", ["-KILL", state.os_pid], stderr_to_stdout: true)
        Port.close(port)
    end
  rescue
    ArgumentError -> :ok
  end

  defp protocol_error(reason) do
    %Error{code: :protocol_violation, message: "pglite-port broke the frame protocol: #{reason}"}
  end

  defp program_exited(how, stderr) do
    %Error{
      code: :program_exited,
      message: "pglite-port ended: #{describe_exit(how)}" <> last_words(stderr)
    }
  end

  # The shell's convention, which Erlang follows too: 128 + signal.
  defp describe_exit(status) when is_integer(status) and status > 128,
    do: "killed by signal #{status - 128}"

  defp describe_exit(status) when is_integer(status), do: "exit status #{status}"
  defp describe_exit(reason), do: inspect(reason)

  defp last_words(stderr) do
    case Stderr.last_lines(stderr, @stderr_lines) do
      [] -> "; it wrote nothing to its standard error"
      lines -> "; its last lines on standard error:\n" <> Enum.map_join(lines, "\n", &"  #{&1}")
    end
  end

  defp telemetry_metadata(options), do: %{server: options.name, mode: options.mode}
end
