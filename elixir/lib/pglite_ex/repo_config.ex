defmodule PgliteEx.RepoConfig do
  @moduledoc false
  # The configuration of a repo whose server has a name: `PgliteEx.repo_config/4`.

  alias PgliteEx.{Branch, Parts, Sandbox, TaskServer}

  defmodule NoServer do
    @moduledoc false
    # Stands for the name of the database while the server does not run. Ecto's tasks read the
    # configuration for other reasons too, `mix ecto.gen.migration` for the path of migrations; those that
    # make a database put its name into SQL, and end then with a sentence. Mix prints the message of
    # an exception that has the field `:mix`, and ends with it as its status.
    defexception [:server, mix: 1]

    @impl Exception
    def message(%{server: server}), do: PgliteEx.RepoConfig.no_server(server)
  end

  defimpl String.Chars, for: NoServer do
    def to_string(no_server), do: raise(no_server)
  end

  @doc "See `PgliteEx.repo_config/4`."
  @spec new(PgliteEx.server() | Branch.t(), :supervisor | :runtime, keyword, keyword) :: keyword
  def new(server, context, config, overrides),
    do: server |> connected(context, config, overrides) |> Sandbox.with_pool()

  defp connected(server, context, config, overrides) do
    cond do
      # It was started with connection options.
      config[:pglite_ex] -> config
      opts = connection_opts(server) -> merge(config, opts, overrides)
      # An orderly end, which is reported as its reason, and not as a crash.
      context == :supervisor -> exit({:shutdown, no_server(server)})
      true -> Keyword.merge(config, nowhere(server))
    end
  end

  defp merge(config, opts, overrides) do
    config
    |> Keyword.merge(Sandbox.without_pool_size(opts, Keyword.merge(config, overrides)))
    |> Keyword.merge(overrides)
  end

  defp connection_opts(server) do
    if server |> Branch.server() |> Parts.registry(),
      do: PgliteEx.connection_opts(server),
      else: TaskServer.connection_opts(server)
  end

  # Leads to no server: Postgrex prefers a socket, `pg_dump` and `psql` get a host.
  defp nowhere(server) do
    place = "the server #{inspect(server)} does not run"
    [url: nil, socket: place, hostname: place, database: %NoServer{server: server}]
  end

  @doc "What a task prints, or the start of an application, when the server does not run."
  @spec no_server(PgliteEx.server() | Branch.t()) :: String.t()
  def no_server(%Branch{server: server}), do: no_server(server)

  def no_server(server) do
    "the server #{inspect(server)} does not run: an application starts it before its repo, and " <>
      "`mix pglite_ex.server #{inspect(server)} --and TASK` for a task that starts no application"
  end
end
