defmodule PgliteEx.Gate do
  @moduledoc """
  A further listening socket of a running server, with connections of its own.

  A gate tells the connections of some clients from all others, without any change to the clients:
  `PgliteEx.Case` opens one for every test. Opening takes a fraction of a millisecond. A gate listens
  on a free port of the loopback interface, and its connections end with it.
  `PgliteEx.connection_opts/2`, `PgliteEx.url/2` and `PgliteEx.address/1` take a gate as they take a
  server. Clients of a gate for a branch are clients of the branch, and need not name it.
  """

  use Supervisor

  alias PgliteEx.{Branch, Clients, Connection, Error, Listener, Options, Parts, Readiness, Server}
  alias PgliteEx.Template

  @doc """
  Opens a gate.

    * `:server` – the server or branch (required). The server has to run: the caller exits with
      `:noproc` when it does not. A gate outlives its server, and tells clients then that the program has
      ended.
  """
  @spec start_link(server: PgliteEx.server() | Branch.t()) :: Supervisor.on_start()
  def start_link(arguments) do
    place = Keyword.fetch!(arguments, :server)
    start_link(place, {{127, 0, 0, 1}, 0}, :ready)
  end

  # A gate at another address, whose connections are served from that stage of the program on.
  @doc false
  @spec start_link(PgliteEx.server() | Branch.t(), Options.listen(), Readiness.stage()) ::
          Supervisor.on_start()
  def start_link(place, listen, stage) do
    # Resolved now: a name must not lead to another server later.
    server = place |> Branch.server() |> GenServer.whereis()
    server || exit({:noproc, {__MODULE__, :start_link, [place]}})
    Supervisor.start_link(__MODULE__, {place, server, listen, stage})
  end

  @doc """
  Freezes the cluster of the gate's oldest connection as the template `name`, with `key` as in
  `PgliteEx.Template.freeze/3`.

  `{:error, %PgliteEx.Error{code: "08003"}}` when there is none, and `"55006"` while a transaction
  is open on it.
  """
  @spec freeze(pid, String.t(), nil | String.t()) :: :ok | {:error, Error.t()}
  def freeze(gate, name, key \\ nil) do
    case identities(gate) do
      [] -> {:error, %Error{code: "08003", message: "no connection to freeze is open"}}
      [oldest | _] -> Template.freeze_identity(oldest, name, key: key)
    end
  end

  # Of the connections of a gate or a server that are open, the oldest first.
  @doc false
  @spec identities(PgliteEx.server()) :: [Connection.identity()]
  def identities(server) do
    connections = DynamicSupervisor.which_children(Server.child(server, Connection))

    identities =
      for {_id, pid, _type, _modules} <- connections,
          identity = Connection.identity(pid),
          do: identity

    Enum.sort_by(identities, & &1.id)
  end

  @impl Supervisor
  def init({place, server, listen, stage}) do
    registry = Parts.claim_name()
    options = %Options{Branch.options(place) | listen: listen}

    clients = %{
      registry: registry,
      server: server,
      stage: stage,
      options: options,
      frame_options: Branch.frame_options(place)
    }

    children = [
      {Parts, {registry, options}},
      {Listener, {registry, options}},
      {Clients, clients}
    ]

    Supervisor.init(children, strategy: :rest_for_one)
  end
end
