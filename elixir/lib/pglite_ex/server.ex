defmodule PgliteEx.Server do
  @moduledoc """
  The supervisor of one server.

  Its children, in the order of their start:

    1. `PgliteEx.Listener` owns the listening socket, which outlives the program;
    2. `PgliteEx.WasmPort` runs the program;
    3. a `DynamicSupervisor` for the `PgliteEx.Connection`s and `PgliteEx.RawConnection`s;
    4. `PgliteEx.SocketServer` accepts clients.

  With `:rest_for_one`, the end of the program ends the connections, which tell their clients so,
  and starts everything but the listener anew.
  """

  use Supervisor

  alias PgliteEx.{Connection, Listener, Options, SocketServer, WasmPort}

  # A program that keeps ending at once is given up rather than started for ever.
  @max_restarts 10
  @max_seconds 10

  @doc "Starts a server."
  @spec start_link(Options.t()) :: Supervisor.on_start()
  def start_link(%Options{} = options) do
    settings = if options.name, do: [name: options.name], else: []

    with {:error, {:shutdown, {:failed_to_start_child, _child, reason}}} <-
           Supervisor.start_link(__MODULE__, options, settings),
         do: {:error, reason}
  end

  @doc """
  The process id of a server's child; `nil` while it is being restarted.

  Asks the supervisor, so it is for the start of a process and not for every message.
  """
  @spec child(Supervisor.supervisor(), module) :: pid | nil
  def child(server, id) do
    Enum.find_value(Supervisor.which_children(server), fn
      {^id, pid, _type, _modules} when is_pid(pid) -> pid
      _other -> nil
    end)
  end

  @doc "The options with which a server was started."
  @spec options(Supervisor.supervisor()) :: Options.t()
  def options(server) do
    {:ok, %{start: {Listener, :start_link, [options]}}} =
      :supervisor.get_childspec(server, Listener)

    options
  end

  @impl Supervisor
  def init(options) do
    context = %{supervisor: self(), server: self(), options: options}

    children = [
      {Listener, options},
      {WasmPort, options},
      Supervisor.child_spec({DynamicSupervisor, strategy: :one_for_one}, id: Connection),
      {SocketServer, context}
    ]

    Supervisor.init(children,
      strategy: :rest_for_one,
      max_restarts: @max_restarts,
      max_seconds: @max_seconds
    )
  end
end
