defmodule PgliteEx.Server do
  @moduledoc false
  # The supervisor of one server.
  #
  # Its children, in the order of their start:
  #
  #   1. `PgliteEx.Parts`, the registry in which the others are found;
  #   2. `PgliteEx.Identity`, with `ssl:`, has the certificate and the key;
  #   3. `PgliteEx.Listener` owns the listening socket;
  #   4. `PgliteEx.Reporter` logs for the owner of the port;
  #   5. `PgliteEx.Readiness` tells waiting processes when the program is ready;
  #   6. `PgliteEx.Clients` supervises connections and the process that accepts them;
  #   7. the supervisor of `PgliteEx.Branches`, which makes and drops branches, and of their gates;
  #   8. `PgliteEx.WasmPort` owns the port and runs the program;
  #   9. one that is never there: its start waits until the program is ready for the first time.
  #
  # The end of the program restarts the program only. The connections notice it by themselves, tell
  # their clients, and end; new ones wait until the next program is ready. The supervisor waits for a
  # program only when it starts.

  use Supervisor

  alias PgliteEx.{Branches, Clients, Identity, Listener, Options, Parts, Password, Readiness}
  alias PgliteEx.{Reporter, WasmPort}

  # A program that keeps ending at once is given up rather than started for ever. With
  # `on_data_loss: :stop`, each restart of a cluster in memory is one too many: `:rest_for_one` starts
  # the program again with every other part.
  @max_restarts 10
  @max_seconds 10

  # What Ecto (`:url`) and Postgrex (the others) would rather connect to than a host and a port.
  @no_other_place [url: nil, socket: nil, socket_dir: nil, endpoints: nil, ssl: false]

  @doc "Starts a server; returns when its program is ready."
  @spec start_link(Options.t()) :: Supervisor.on_start()
  def start_link(%Options{} = options) do
    settings = if options.name, do: [name: options.name], else: []

    with {:error, {:shutdown, {:failed_to_start_child, _child, reason}}} <-
           Supervisor.start_link(__MODULE__, options, settings),
         do: {:error, reason}
  end

  @doc "The process of a part of a server or gate; `nil` while it is being restarted."
  @spec child(PgliteEx.server(), module) :: pid | nil
  def child(server, part), do: server |> Parts.registry!() |> Parts.whereis(part)

  @doc "The options with which a server or gate was started."
  @spec options(PgliteEx.server()) :: Options.t()
  def options(server), do: server |> Parts.registry!() |> Parts.options!()

  @doc "Connection options for a server with these options, at this address."
  @spec connection_opts(PgliteEx.server() | PgliteEx.Branch.t(), Options.t(), Options.listen()) ::
          keyword
  def connection_opts(server, %Options{} = options, address) do
    place =
      case address do
        {:local, path} -> [socket: path]
        {host, port} -> [hostname: host |> :inet.ntoa() |> List.to_string(), port: port]
      end

    pool = if options.mode == :isolated, do: [pool_size: 1], else: []
    password = for password <- List.wrap(Password.reveal(options)), do: {:password, password}

    [pglite_ex: server]
    |> Keyword.merge(@no_other_place)
    |> Keyword.merge(place)
    |> Keyword.merge([username: options.username, database: options.database] ++ password)
    |> Keyword.merge(pool)
  end

  @impl Supervisor
  def init(options) do
    registry = Parts.claim_name()
    reporter = Reporter.new(Parts.name(registry, Reporter))

    clients = %{
      registry: registry,
      server: self(),
      stage: :ready,
      options: options,
      frame_options: []
    }

    children = [
      {Parts, {registry, options}},
      {Identity, {registry, options}},
      {Listener, {registry, options}},
      {Reporter, reporter},
      {Readiness, registry},
      {Clients, clients},
      Branches.supervisor_spec(%{registry: registry, options: options}),
      {WasmPort, %{registry: registry, server: self(), options: options, reporter: reporter}},
      %{id: :first_start, start: {Readiness, :first_start, [registry]}, restart: :temporary}
    ]

    Supervisor.init(children,
      strategy: :rest_for_one,
      max_restarts: if(stops_with_its_data?(options), do: 0, else: @max_restarts),
      max_seconds: @max_seconds
    )
  end

  defp stops_with_its_data?(%{mode: mode, data: data, on_data_loss: on_data_loss}),
    do: mode == :shared and data == nil and on_data_loss == :stop
end
