defmodule PgliteEx.Branch do
  @moduledoc """
  A branch: a database cluster of its own beside that of a server, made in no time and dropped when its
  owner has ended.

      {:ok, server} = PgliteEx.start_link(database: "shop")
      {:ok, branch} = PgliteEx.branch(server)
      {:ok, conn} = Postgrex.start_link(PgliteEx.connection_opts(branch))

  A branch begins with what is committed in its origin at that moment, and goes its own way from there:
  neither sees what the other does. It takes as many connections as any cluster, which see each other's
  commits, wait for each other's locks and notify each other.

  A handle, as `PgliteEx.branch/2` returns it, can be used where a server is expected, in
  `PgliteEx.connection_opts/2`, `PgliteEx.url/2`, `PgliteEx.address/1`, `PgliteEx.open/2` (and with its
  connections in `PgliteEx.freeze/3`), `PgliteEx.stats/1`, `PgliteEx.backup/3`, `PgliteEx.move/3`,
  `PgliteEx.repo_config/4`, `PgliteEx.branch/2` itself, as the server of a `PgliteEx.Gate`, and in
  `PgliteEx.Clock` and `PgliteEx.Random`. `PgliteEx.request/4`,
  `PgliteEx.await_ready/2`, and the functions of `PgliteEx.Template` are about the program of its server.

  ## How clients reach it

  A branch has an address of its own, which is opened when `PgliteEx.connection_opts/2`, `PgliteEx.url/2` or
  `PgliteEx.address/1` is first asked for it, and closed with the branch. Every client of PostgreSQL can use
  it, also those that would ignore a parameter in a URL, as Ecto does.

  At the server's own address, clients name the branch in the startup parameter `pglite.cluster`, as with
  `PGOPTIONS="-c pglite.cluster=NAME" psql URL`, or with Postgrex' option
  `parameters: ["pglite.cluster": branch.name]`. Such connections are for tools: Postgrex takes connections
  to the same address and database to have the same types, which two branches need not have.

  In a session, `SHOW pglite.cluster` returns the name.

  ## How long it lives

  Until `PgliteEx.drop/1`, or until its owner has ended, or until the program of the server ends. Its
  sessions then end with SQLSTATE `57P01`, and its address is closed. A branch with `data:` is kept in a
  directory, which must be empty or not there: when it is dropped, it is shut down, and the directory stays.
  A server with `data:` opens it again.

  When the program is started again after a crash, its branches are not there again: what they began with
  is gone, or has changed. Their addresses stay open as long as their owners, and refuse clients with SQLSTATE
  `3D000`.
  """

  alias PgliteEx.{Branches, Channel, Error, Limits, Options, Parts, Readiness, Server, Telemetry}

  @enforce_keys [:server, :name, :database]
  defstruct [:server, :name, :database]

  @typedoc """
  A handle: the server, the name of the cluster in its program, and the database that
  `PgliteEx.connection_opts/2` names.
  """
  @type t :: %__MODULE__{server: PgliteEx.server(), name: String.t(), database: String.t()}

  # That of a shared server.
  @default_cluster "default"
  # How long a caller waits for a program that is being started, in milliseconds.
  @ready_timeout 5_000

  @defaults [
    template: nil,
    data: nil,
    name: nil,
    settings: [],
    memory_limit: nil,
    disk_limit: nil,
    owner: nil,
    database: nil
  ]

  @doc "See `PgliteEx.branch/2`."
  @spec create(PgliteEx.server() | t, keyword) :: {:ok, t} | {:error, Error.t()}
  def create(origin, options) do
    options = Keyword.validate!(options, @defaults)
    server = server(origin)
    defaults = Server.options(server)
    {kind, from} = source(origin, defaults, text!(options, :template))
    name = text!(options, :name) || free_name()
    metadata = %{server: defaults.name, name: name, origin: {kind, from}}

    request =
      [{"name", name}, {Atom.to_string(kind), from}] ++
        for(path <- path!(options), do: {"data", path}) ++
        Limits.frame_options(options) ++
        for {key, value} <- settings!(options), do: {"set", "#{key}=#{value}"}

    database = text!(options, :database)
    owner = owner!(options)

    Telemetry.span([:branch], metadata, fn ->
      case make(server, name, request, owner) do
        {:ok, made} ->
          database = database || inherited(origin, kind, defaults) || made
          {{:ok, %__MODULE__{server: server, name: name, database: database}}, no_error(metadata)}

        {:error, error} ->
          {{:error, error}, Map.put(metadata, :error, error)}
      end
    end)
  end

  defp no_error(metadata), do: Map.put(metadata, :error, nil)

  defp make(server, name, request, owner) do
    registry = Parts.registry!(server)

    # So that the function of `after_start:` can make branches, which it does while clients wait.
    with {:ok, _wasm_port} <- Readiness.await(registry, @ready_timeout, :started),
         do: ask(registry, {:create, name, request, owner})
  end

  @doc "See `PgliteEx.drop/1`."
  @spec drop(t) :: :ok | {:error, Error.t()}
  def drop(%__MODULE__{server: server, name: name}) do
    with {:ok, _reply} <- server |> Parts.registry!() |> ask({:drop, name}), do: :ok
  end

  @doc "The gate whose clients are those of the branch, which is opened when it is first asked for."
  @spec gate!(t) :: pid
  def gate!(%__MODULE__{server: server} = branch) do
    case server |> Parts.registry!() |> ask({:gate, branch}) do
      {:ok, gate} -> gate
      {:error, error} -> raise error
    end
  end

  defp ask(registry, request) do
    case Parts.whereis(registry, Branches) do
      nil -> {:error, Error.from_reason(Channel.program_gone())}
      branches -> Branches.ask(branches, request)
    end
  end

  @doc "The server of a handle; another server is its own."
  @spec server(PgliteEx.server() | t) :: PgliteEx.server()
  def server(%__MODULE__{server: server}), do: server
  def server(server), do: server

  @doc "The options in a frame that opens a connection, with which it is one of the branch."
  @spec frame_options(PgliteEx.server() | t) :: PgliteEx.Frame.options()
  def frame_options(%__MODULE__{name: name}), do: [{"cluster", name}]
  def frame_options(_server), do: []

  @doc "The options of a server, as far as they say how its clients, or those of a branch, connect."
  @spec options(PgliteEx.server() | t) :: Options.t()
  def options(%__MODULE__{server: server, database: database}),
    do: %Options{Server.options(server) | mode: :shared, database: database}

  def options(server), do: Server.options(server)

  @doc """
  What the program says about the branch: the number of its connections, and texts.
  """
  @spec stats(t) :: {:ok, PgliteEx.Frame.options()} | {:error, Error.t()}
  def stats(%__MODULE__{server: server, name: name}) do
    with {:ok, clusters} <- PgliteEx.request(server, "clusters") do
      case Enum.drop_while(clusters, &(&1 != {"name", name})) do
        # The options of each cluster begin with its name.
        [_name | own] -> {:ok, Enum.take_while(own, fn {key, _value} -> key != "name" end)}
        [] -> {:error, unknown(name)}
      end
    end
  end

  @doc "The error of a branch that is not there, as of the program."
  @spec unknown(String.t()) :: Error.t()
  def unknown(name) do
    %Error{
      code: "3D000",
      message: "cluster \"#{name}\" does not exist",
      hint:
        "A branch ends with its owner and with the program that it is in; make another one with " <>
          "PgliteEx.branch/2."
    }
  end

  # What is branched: the template that is named, or the cluster of a server or branch as it is now.
  defp source(_origin, _options, template) when template != nil, do: {:template, template}
  defp source(%__MODULE__{name: name}, _options, nil), do: {:branch, name}
  defp source(_server, %{mode: :shared}, nil), do: {:branch, @default_cluster}
  defp source(_server, options, nil), do: {:template, options.template || options.database}

  # A template knows the name of the database in it.
  defp inherited(_origin, :template, _options), do: nil
  defp inherited(%__MODULE__{database: database}, :branch, _options), do: database
  defp inherited(_server, :branch, %{database: database}), do: database

  # Never used again: the handle of a branch that is gone must not lead to another one.
  defp free_name,
    do: "branch-" <> Base.encode16(:crypto.strong_rand_bytes(6), case: :lower)

  defp owner!(options) do
    case options[:owner] do
      nil -> self()
      owner when is_pid(owner) or owner == :none -> owner
      owner -> refuse!(:owner, owner, "a pid, or :none")
    end
  end

  defp path!(options),
    do: for(path <- List.wrap(text!(options, :data)), do: Path.expand(path))

  defp text!(options, key) do
    text = options[key]

    if text == nil or
         (is_binary(text) and text != "" and String.valid?(text) and not (text =~ <<0>>)),
       do: text,
       else: refuse!(key, text, "a string that is not empty and has no NUL in it")
  end

  # As those of a server.
  defp settings!(options), do: Options.new!(Keyword.take(options, [:settings])).settings

  defp refuse!(key, value, allowed) do
    raise ArgumentError,
          "option #{key} of a branch: #{inspect(value)} is not allowed; it takes #{allowed}"
  end
end
