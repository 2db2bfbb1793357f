defmodule PgliteEx.Preparation do
  @moduledoc false
  # What is done with a program that has started, before clients are let in: the database and the role
  # of the options are made if they are missing, and the function of `after_start:` runs.
  #
  # Both happen in a process that the owner of the port is linked to and does not wait for. Processes
  # that the function starts, such as a repo, end with that process. Its connections come through a
  # gate of its own, which is open as long as it runs.

  alias PgliteEx.{Error, Gate, Options, Password, Session}

  # The role that `initdb` makes, and the databases that it makes for connections like these. `createdb`
  # tries these databases in the same order (`connectMaintenanceDatabase` in PostgreSQL's
  # `src/fe_utils/connect_utils.c`).
  @bootstrap_user "postgres"
  @maintenance_database "postgres"
  @template_database "template1"

  # Added to the number in the name of a unix socket, for that of the gate beside it.
  @gate_offset 10_000

  @enforce_keys [:process, :timer]
  defstruct [:process, :timer]

  @type t :: %__MODULE__{process: pid, timer: nil | reference}

  @doc "Whether there is anything to do."
  @spec needed?(Options.t()) :: boolean
  def needed?(%Options{mode: :isolated}), do: false

  def needed?(%Options{} = options), do: options.after_start != nil or names_others?(options)

  # Whether a role or a database is named that `initdb` has not made.
  defp names_others?(%{username: @bootstrap_user, database: @maintenance_database}), do: false
  defp names_others?(_options), do: true

  @doc """
  Begins, for a server and its registry. The caller must trap exits, and passes its messages to
  `handle/2`.
  """
  @spec start_link(%{
          :registry => Registry.registry(),
          :server => pid,
          :options => Options.t(),
          optional(atom) => term
        }) :: t
  def start_link(%{options: options} = context) do
    process = spawn_link(fn -> exit({:shutdown, {__MODULE__, run(context)}}) end)

    timer =
      if options.after_start_timeout != :infinity,
        do: Process.send_after(self(), {__MODULE__, :late, process}, options.after_start_timeout)

    %__MODULE__{process: process, timer: timer}
  end

  @doc """
  Handles a message of the caller's mailbox: `:ok` when all is done, `:unknown` when it is not a
  message of the preparation.
  """
  @spec handle(t | nil, term, Options.t()) :: :ok | {:error, Error.t()} | :unknown
  def handle(%__MODULE__{process: process} = preparation, {:EXIT, process, reason}, options) do
    if preparation.timer, do: Process.cancel_timer(preparation.timer)

    case reason do
      {:shutdown, {__MODULE__, result}} -> result
      reason -> {:error, failed("ended: " <> Exception.format_exit(reason), options)}
    end
  end

  def handle(%__MODULE__{process: process} = preparation, {__MODULE__, :late, process}, options) do
    stop(preparation)
    time = "within #{options.after_start_timeout} ms"

    if options.after_start,
      do: {:error, failed("has not returned #{time}", options)},
      else: {:error, %Error{code: :timeout, message: "the database was not made #{time}"}}
  end

  def handle(_preparation, _message, _options), do: :unknown

  @doc "Ends the process, and with it those that it is linked to."
  @spec stop(t | nil) :: :ok
  def stop(nil), do: :ok

  def stop(%__MODULE__{process: process}) do
    Process.unlink(process)
    Process.exit(process, :kill)
    :ok
  end

  defp run(%{options: options} = context) do
    with :ok <- if(names_others?(options), do: make_database(context), else: :ok),
         do: if(options.after_start, do: call(context), else: :ok)
  end

  defp make_database(%{registry: registry, options: options}) do
    make = &{:made, make_role_and_database(&1, options)}

    Enum.reduce_while(sessions(options), nil, fn {database, username}, first_refusal ->
      case Session.run(registry, database, [username: username, stage: :started], make) do
        {:made, result} -> {:halt, result}
        {:error, error} -> {:cont, first_refusal || {:error, error}}
      end
    end)
  end

  # The sessions that are tried until one begins. The role and the databases that `initdb` made may have
  # other names by now, or be gone; the server's own are there then. Those of `initdb` come first, because
  # a new cluster has only them, and the program logs each refusal.
  defp sessions(%{database: database, username: username}) do
    for database <- Enum.uniq([@maintenance_database, @template_database, database]),
        username <- Enum.uniq([@bootstrap_user, username]),
        do: {database, username}
  end

  defp make_role_and_database(session, %{username: username, database: database} = options) do
    role = Session.identifier(username)
    create_role = "create role #{role} login superuser"
    create_database = "create database #{Session.identifier(database)} owner #{role}"

    with {:ok, password} <- Password.fetch(options),
         roles = "pg_roles where rolname",
         :ok <- unless_there(session, roles, username, create_role, with_password(password)),
         do: unless_there(session, "pg_database where datname", database, create_database)
  end

  # The program has set the password of a role that was there when it started.
  defp with_password(nil), do: ""
  defp with_password(password), do: " password '#{Password.verifier(password)}'"

  # Looked for first, because a refused statement would be an error in the program's log. As a `name`,
  # a long text is cut off, as it is when it becomes the name of a role or database.
  defp unless_there(session, table_and_column, name, create, secret \\ "") do
    sql = "select from pg_catalog.#{table_and_column} = #{Session.literal(name)}::name"

    with {:ok, []} <- Session.query(session, sql),
         {:error, error} <- Session.query(session, create <> secret) do
      {:error, %{error | message: "#{create}: #{error.message}"}}
    else
      {:ok, _rows} -> :ok
      {:error, error} -> {:error, error}
    end
  end

  defp call(%{server: server, options: options}) do
    gate = open_gate(server, gate_address(options.listen))
    result = apply_function(options, PgliteEx.connection_opts(gate))
    Supervisor.stop(gate)
    result
  end

  # The gate is linked to a process of its own. Linked to this one, it would report what this one ends with, which may
  # have the password in it.
  defp open_gate(server, address) do
    preparation = self()
    {keeper, monitor} = spawn_monitor(fn -> keep_gate(preparation, server, address) end)

    receive do
      {^keeper, gate} ->
        Process.demonitor(monitor, [:flush])
        gate

      {:DOWN, ^monitor, :process, ^keeper, reason} ->
        exit(reason)
    end
  end

  defp keep_gate(preparation, server, address) do
    Process.flag(:trap_exit, true)
    monitor = Process.monitor(preparation)

    case Gate.start_link(server, address, :started) do
      {:ok, gate} ->
        send(preparation, {self(), gate})

        receive do
          {:DOWN, ^monitor, :process, ^preparation, _reason} -> Supervisor.stop(gate)
          {:EXIT, ^gate, :normal} -> :ok
          {:EXIT, ^gate, reason} -> Process.exit(preparation, reason)
        end

      {:error, reason} ->
        exit(reason)
    end
  end

  @doc "Calls the function of `:after_start` of a server with these options, if it has one."
  @spec apply_function(Options.t(), keyword) :: :ok | {:error, Error.t()}
  def apply_function(%Options{after_start: nil}, _connection_opts), do: :ok

  def apply_function(%Options{} = options, connection_opts) do
    result =
      case options.after_start do
        {module, name, arguments} -> apply(module, name, [connection_opts | arguments])
        function -> function.(connection_opts)
      end

    case result do
      {:error, reason} -> {:error, failed("returned an error: " <> describe(reason), options)}
      :error -> {:error, failed("returned :error", options)}
      _done -> :ok
    end
  catch
    kind, reason ->
      {:error, failed("failed: " <> Exception.format(kind, reason, __STACKTRACE__), options)}
  end

  # As reachable as the server is, and no more.
  defp gate_address({:local, path}) do
    ".s.PGSQL." <> number = Path.basename(path)
    number = rem(String.to_integer(number) + @gate_offset, 65_536)
    {:local, Path.join(Path.dirname(path), ".s.PGSQL.#{number}")}
  end

  defp gate_address({host, _port}) when tuple_size(host) == 8,
    do: {{0, 0, 0, 0, 0, 0, 0, 1}, 0}

  defp gate_address({_host, _port}), do: {{127, 0, 0, 1}, 0}

  defp describe(reason) when is_exception(reason), do: Exception.message(reason)
  defp describe(reason), do: inspect(reason)

  # What a function raises, or a process that it is linked to ends with, may have its arguments in it.
  defp failed(how, options) do
    message = Password.redact("the function of after_start: #{how}", options)
    %Error{code: :after_start_failed, message: message}
  end
end
