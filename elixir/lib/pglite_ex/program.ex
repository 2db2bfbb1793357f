defmodule PgliteEx.Program do
  @moduledoc false
  # Starts `pglite-port` as a port of the calling process, step by step, and ends it by force.
  #
  # Nothing here waits for the program: while it starts, the owner passes its own messages to
  # `handle/2`. `PgliteEx.WasmPort` handles the frames after the hello.

  alias PgliteEx.{Error, Executable, Frame, Options, Password, Stderr}

  @protocol "1"
  # How long the program may say nothing before its hello, in milliseconds. At its first start it compiles
  # PGlite, which takes seconds, or a minute on a small machine. While a cluster recovers, which takes as
  # long as there is WAL, it says every second how far it has come.
  @start_timeout 180_000
  # From when on what it says meanwhile is news, in milliseconds.
  @slow_start 2_000
  # How many lines of its standard error an error message shows.
  @stderr_lines 20
  # Bytes that the port queues for a program that does not read, before writers are suspended.
  @busy_limits {262_144, 524_288}

  # Bytes of a frame's length that are not its payload: kind and id.
  @frame_head 5
  # Has the directory of the password while the program is being started.
  @password_variable "PGLITE_EX_PASSWORD"

  @enforce_keys [:options, :executable, :stderr, :timer, :opened_at]
  defstruct [
    :options,
    :executable,
    :stderr,
    :timer,
    :opened_at,
    :port,
    :hello,
    :window,
    :max_payload,
    heard?: false
  ]

  @type t :: %__MODULE__{
          options: Options.t(),
          executable: Path.t(),
          stderr: Stderr.t(),
          # Ends a start of which nothing is heard, and whether something was since it was set.
          timer: reference,
          heard?: boolean,
          # In milliseconds of monotonic time.
          opened_at: integer,
          # `nil` until the pipe for standard error is open.
          port: nil | port,
          # The options of the program's hello; this and the fields below are `nil` until then.
          hello: nil | %{String.t() => String.t()},
          # The program's limits, in bytes: the window of a connection in one direction, and the
          # payload of a frame.
          window: nil | pos_integer,
          max_payload: nil | pos_integer
        }

  @doc """
  Starts the program without waiting for it. The owner must trap exits, and passes its messages to
  `handle/2`.
  """
  @spec open(Options.t()) :: {:ok, t} | {:error, Error.t()}
  def open(%Options{} = options) do
    with {:ok, executable} <- Executable.find(options.executable) do
      {:ok,
       %__MODULE__{
         options: options,
         executable: executable,
         stderr: Stderr.open(),
         timer: set_timer(),
         opened_at: System.monotonic_time(:millisecond)
       }}
    end
  rescue
    error in ErlangError -> {:error, not_spawned(error.original)}
  end

  @doc """
  Handles a message of the owner's mailbox; `:unknown` when it is not a message of the program.

  `:ready` is returned once, for the program's hello; from then on, only messages about standard
  error are handled.
  """
  @spec handle(t, term) :: {:ok, t} | {:ready, t} | {:error, Error.t()} | :unknown
  def handle(%__MODULE__{hello: nil, port: port} = program, {port, {:data, bytes}}) do
    with {:ready, program} <- bytes |> Frame.decode() |> check_hello(program) do
      Process.cancel_timer(program.timer)
      {:ready, program}
    end
  end

  def handle(%__MODULE__{hello: nil, port: port} = program, {port, {:exit_status, status}}),
    do: {:error, ended(program, status)}

  def handle(%__MODULE__{hello: nil, port: port} = program, {:EXIT, port, reason}),
    do: {:error, ended(program, reason)}

  def handle(%__MODULE__{hello: nil, heard?: true} = program, {__MODULE__, :start_timeout}),
    do: {:ok, %{program | timer: set_timer(), heard?: false}}

  def handle(%__MODULE__{hello: nil} = program, {__MODULE__, :start_timeout}) do
    message = "pglite-port said nothing for #{@start_timeout} ms"
    {:error, %Error{code: :timeout, message: message <> last_words(program.stderr)}}
  end

  def handle(%__MODULE__{} = program, message) do
    case Stderr.handle(program.stderr, message) do
      {:ok, stderr} -> {:ok, %{program | stderr: stderr, heard?: true}}
      {:ready, stderr} -> run(%{program | stderr: stderr})
      # While the program runs, only its last lines are lost.
      {:error, error} -> if program.hello, do: {:ok, program}, else: {:error, error}
      :unknown -> :unknown
    end
  end

  @doc """
  The lines that a message about standard error brings from a program whose start takes long; they are
  news, because nothing else is heard of it before its hello.
  """
  @spec news(t, term) :: [String.t()]
  def news(%__MODULE__{hello: nil, stderr: %{port: port}} = program, {port, {:data, bytes}}) do
    if System.monotonic_time(:millisecond) - program.opened_at > @slow_start and
         String.valid?(bytes),
       do: String.split(bytes, "\n", trim: true),
       else: []
  end

  def news(_program, _message), do: []

  defp set_timer, do: Process.send_after(self(), {__MODULE__, :start_timeout}, @start_timeout)

  defp run(%{options: options, stderr: stderr} = program) do
    with {:ok, password} <- Password.fetch(options) do
      directory = password && Password.write!(password)
      {name, settings} = port_settings(options, program.executable, stderr.path, directory)

      try do
        {:ok, %{program | port: Port.open(name, settings)}}
      rescue
        error in ErlangError ->
          if directory, do: File.rm_rf(directory)
          {:error, not_spawned(error.original)}
      end
    end
  rescue
    error in File.Error -> {:error, not_spawned(error.reason)}
  end

  defp not_spawned(posix) do
    message = "cannot start a process of the operating system: #{:file.format_error(posix)}"
    %Error{code: posix, message: message}
  end

  @doc """
  The name and the options with which `Port.open/2` starts the program.

  The program gets only the options that were given; it has its own defaults for the others. It always
  gets the time of a stop, for which the port's owner waits. The directory is that of the password, if the
  options have one.

  ## Examples

      iex> options = PgliteEx.Options.new!(mode: :isolated, max_connections: 5)
      iex> {{:spawn_executable, "/bin/sh"}, settings} =
      ...>   PgliteEx.Program.port_settings(options, "/opt/pglite-port", "/tmp/stderr")
      iex> Enum.take(settings[:args], 4)
      ["-c", ~S(exec "$0" "$@" 2>"$PGLITE_EX_STDERR"), "/opt/pglite-port", "port"]
      iex> Enum.drop(settings[:args], 4)
      ["--mode", "isolated", "--shutdown-timeout", "5.0", "--max-connections", "5"] ++
        ["--allow-clock", "--allow-seed"]

      iex> options = PgliteEx.Options.new!(metrics: {"::1", 9187})
      iex> {_command, settings} = PgliteEx.Program.port_settings(options, "pglite-port", "/tmp/stderr")
      iex> Enum.take(settings[:args], -2)
      ["--metrics", "[::1]:9187"]
  """
  @spec port_settings(Options.t(), Path.t(), Path.t(), nil | Path.t()) ::
          {{:spawn_executable, Path.t()}, list}
  def port_settings(%Options{} = options, executable, stderr_path, password_directory \\ nil) do
    open_password = if password_directory, do: Password.shell(@password_variable), else: ""

    {{:spawn_executable, "/bin/sh"},
     [
       :binary,
       :exit_status,
       :use_stdio,
       :hide,
       packet: 4,
       busy_limits_port: @busy_limits,
       env: environment(options, stderr_path, password_directory),
       args:
         ["-c", open_password <> ~S(exec "$0" "$@" 2>"$PGLITE_EX_STDERR"), executable, "port"] ++
           arguments(options)
     ]}
  end

  @doc "Ends the program at once, if it is still there."
  @spec kill(t) :: :ok
  def kill(%__MODULE__{port: nil}), do: :ok

  def kill(%__MODULE__{port: port}) do
    # While the port is open, its process id cannot be reused for another process.
    with {:os_pid, os_pid} <- Port.info(port, :os_pid) do
      System.cmd("kill", ["-KILL", "#{os_pid}"], stderr_to_stdout: true)
      Port.close(port)
    end

    :ok
  rescue
    # The port has closed by itself meanwhile.
    ArgumentError -> :ok
  end

  @doc "The error of a program that has ended: its exit status, or why its port closed."
  @spec ended(t, non_neg_integer | term) :: Error.t()
  def ended(%__MODULE__{stderr: stderr}, how) do
    %Error{
      code: :program_exited,
      message: "pglite-port ended: #{describe_end(how)}" <> last_words(stderr)
    }
  end

  @doc "The error of a program that has violated the frame protocol."
  @spec broke_protocol(String.t()) :: Error.t()
  def broke_protocol(reason) do
    %Error{code: :protocol_violation, message: "pglite-port broke the frame protocol: #{reason}"}
  end

  defp metrics(nil), do: nil

  # An IPv6 address is in brackets.
  defp metrics({host, port}) do
    address = to_string(:inet.ntoa(host))
    if tuple_size(host) == 8, do: "[#{address}]:#{port}", else: "#{address}:#{port}"
  end

  defp arguments(options) do
    flags = [
      {"--mode", options.mode},
      {"--data", options.data},
      {"--auth", auth(options.auth)},
      {"--password-file", if(options.password, do: Password.path())},
      {"--password-user", if(options.password, do: options.username)},
      {"--template", if(options.mode == :shared, do: options.template)},
      {"--shutdown-timeout", options.shutdown_timeout / 1_000},
      {"--max-connections", options.max_connections},
      {"--memory-limit", options.memory_limit},
      {"--cluster-memory-limit", options.cluster_memory_limit},
      {"--cluster-disk-limit", options.cluster_disk_limit},
      {"--metrics", metrics(options.metrics)},
      {"--warm", options.warm},
      {"--pglite-dir", options.pglite_dir || Executable.installed_pglite_dir()},
      {"--cache-dir", options.cache_dir},
      {"--icu-data", options.icu_data}
    ]

    settings = for {name, value} <- options.settings, do: {"--set", "#{name}=#{value}"}
    extensions = for path <- options.extensions, do: {"--extension", path}

    words =
      for {flag, value} <- flags ++ settings ++ extensions,
          value != nil,
          word <- [flag, to_string(value)],
          do: word

    words ++ leave(options.mode)
  end

  defp auth(:scram_sha_256), do: "scram-sha-256"
  defp auth(trust_path_or_nil), do: trust_path_or_nil

  # For `PgliteEx.Clock` and `PgliteEx.Random`: the clusters of this mode are for tests.
  defp leave(:isolated), do: ["--allow-clock", "--allow-seed"]
  defp leave(:shared), do: []

  defp environment(options, stderr_path, password_directory) do
    password =
      for directory <- List.wrap(password_directory),
          do: {to_charlist(@password_variable), to_charlist(directory)}

    log = for level <- List.wrap(options.log_level), do: {~c"PGLITE_PORT_LOG", to_charlist(level)}
    [{~c"PGLITE_EX_STDERR", String.to_charlist(stderr_path)} | password ++ log]
  end

  defp check_hello({:ok, {:hello, 0, options}}, program) do
    hello = Map.new(options)

    with :ok <- check_protocol(hello["protocol"]),
         {:ok, window} <- limit(hello, "window"),
         {:ok, max_frame} <- limit(hello, "max_frame"),
         do:
           {:ready,
            %{program | hello: hello, window: window, max_payload: max_frame - @frame_head}}
  end

  defp check_hello({:ok, frame}, _program),
    do: {:error, broke_protocol("#{inspect(frame)} instead of hello")}

  defp check_hello({:error, reason}, _program), do: {:error, broke_protocol(reason)}

  defp check_protocol(@protocol), do: :ok

  defp check_protocol(other) do
    {:error,
     broke_protocol("""
     it has protocol version #{inspect(other)} and this library has version #{@protocol}; \
     run `mix pglite_ex.install` to get the program of this library's version\
     """)}
  end

  defp limit(hello, name) do
    case Integer.parse(hello[name] || "") do
      {bytes, ""} when bytes > @frame_head ->
        {:ok, bytes}

      _nothing_usable ->
        {:error, broke_protocol("#{name} is #{inspect(hello[name])} in its hello")}
    end
  end

  # Like shells, Erlang reports 128 + signal for a process that a signal has ended.
  defp describe_end(status) when is_integer(status) and status > 128,
    do: "killed by signal #{status - 128}"

  defp describe_end(status) when is_integer(status), do: "exit status #{status}"
  defp describe_end(reason), do: inspect(reason)

  defp last_words(stderr) do
    case Stderr.last_lines(stderr, @stderr_lines) do
      [] ->
        "; it wrote nothing to its standard error"

      lines ->
        "; its last lines on standard error:\n" <>
          Enum.map_join(lines, "\n", &"  #{in_elixir(&1)}")
    end
  end

  # The options of the command line that the program's advice names, as those of this library.
  defp in_elixir(line) do
    Regex.replace(
      ~r/--(auth|cache-dir|pglite-dir|icu-data|data|password-file|template|set)\b/,
      line,
      fn _flag, name ->
        option(name) <> ":"
      end
    )
  end

  defp option("set"), do: "settings"
  defp option("password-file"), do: "password"
  defp option(name), do: String.replace(name, "-", "_")
end
