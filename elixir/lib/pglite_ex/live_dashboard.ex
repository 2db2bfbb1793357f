defmodule PgliteEx.LiveDashboard do
  @moduledoc ~S'''
  A page about a server for Phoenix LiveDashboard: sessions, clusters, memory, and templates.

  The page is a module of the application, because this library does not depend on Phoenix:

      defmodule MyAppWeb.PostgresPage do
        use PgliteEx.LiveDashboard
      end

  Its server is named in the router; with several servers, there are several pages:

      live_dashboard "/dashboard",
        additional_pages: [
          postgres: {MyAppWeb.PostgresPage, server: MyApp.Postgres}
        ]

  It has three tabs: the figures of `PgliteEx.stats/1` and whether the server is ready
  (`PgliteEx.health/2`); the clusters, with their sessions; the templates. Figures that a newer program has
  are shown by their names. While the program restarts, the page says so and shows empty tables.

  The other functions of this module are what the page shows. They work without Phoenix.
  '''

  alias PgliteEx.Error

  @typedoc "What a table of LiveDashboard asks for."
  @type query :: %{
          required(:sort_by) => atom,
          required(:sort_dir) => :asc | :desc,
          required(:limit) => pos_integer,
          required(:search) => String.t() | nil,
          optional(atom) => term
        }

  @typedoc "Rows up to the limit, and how many there are."
  @type rows :: {[map], non_neg_integer}

  # Figures that have a place and a unit of their own.
  @known [
    {"connections", "Connections", :number},
    {"connections_opened", "Connections since the start", :number},
    {"clusters", "Clusters", :number},
    {"shared_sessions", "Sessions of the shared cluster", :number},
    {"turns", "Turns since the start", :number},
    {"memory", "Memory of the program", :bytes},
    {"memory_used", "Memory that counts", :bytes},
    {"memory_limit", "Limit of memory", :bytes},
    {"private_memory", "Memory of isolated connections", :bytes},
    {"private_files", "Files of isolated connections", :bytes},
    {"linear_memory", "Memories of sessions", :bytes},
    {"files_in_memory", "Files in memory", :bytes},
    {"shared_memory", "Shared memory", :bytes},
    {"images", "Images", :bytes},
    {"queued_frames", "Frames not read yet", :bytes},
    {"warm", "Clones kept ready", :number}
  ]

  @doc false
  defmacro __using__(_options) do
    quote do
      use Phoenix.LiveDashboard.PageBuilder

      @impl Phoenix.LiveDashboard.PageBuilder
      def init(options), do: {:ok, %{server: Keyword.fetch!(options, :server)}}

      @impl Phoenix.LiveDashboard.PageBuilder
      def mount(_params, session, socket),
        do: {:ok, Phoenix.Component.assign(socket, :server, session.server)}

      @impl Phoenix.LiveDashboard.PageBuilder
      def menu_link(session, _capabilities),
        do: {:ok, PgliteEx.LiveDashboard.title(session.server)}

      @impl Phoenix.LiveDashboard.PageBuilder
      def render(var!(assigns)) do
        ~H"""
        <.live_nav_bar id="pglite-nav" page={@page}>
          <:item name="figures" label="Figures">
            <.row :for={cards <- PgliteEx.LiveDashboard.cards(@server, @page.node) |> Enum.chunk_every(3)}>
              <:col :for={{title, value} <- cards}>
                <.card title={title}><%= value %></.card>
              </:col>
            </.row>
          </:item>
          <:item name="clusters" label="Clusters">
            <.live_table
              id="pglite-clusters"
              dom_id="pglite-clusters"
              page={@page}
              title="Clusters"
              rows_name="clusters"
              row_fetcher={&PgliteEx.LiveDashboard.clusters(@server, &1, &2)}
            >
              <:col field={:name} sortable={:asc} />
              <:col field={:origin} />
              <:col field={:connections} sortable={:desc} text_align="right" header="Sessions" />
              <:col :let={cluster} field={:memory} sortable={:desc} text_align="right">
                <%= PgliteEx.LiveDashboard.bytes(cluster.memory) %>
              </:col>
              <:col field={:lifetime} />
              <:col field={:data} header="Directory" />
              <:col :let={cluster} field={:made_at} sortable={:desc} header="Made">
                <%= PgliteEx.LiveDashboard.time(cluster.made_at) %>
              </:col>
            </.live_table>
          </:item>
          <:item name="templates" label="Templates">
            <.live_table
              id="pglite-templates"
              dom_id="pglite-templates"
              page={@page}
              title="Templates"
              rows_name="templates"
              row_fetcher={&PgliteEx.LiveDashboard.templates(@server, &1, &2)}
            >
              <:col field={:name} sortable={:asc} />
              <:col field={:database} />
              <:col field={:key} />
              <:col :let={template} field={:size} sortable={:desc} text_align="right">
                <%= PgliteEx.LiveDashboard.bytes(template.size) %>
              </:col>
              <:col :let={template} field={:made_at} sortable={:desc} header="Made">
                <%= PgliteEx.LiveDashboard.time(template.made_at) %>
              </:col>
            </.live_table>
          </:item>
        </.live_nav_bar>
        """
      end
    end
  end

  @doc "The title of a server's page."
  @spec title(PgliteEx.server()) :: String.t()
  def title(server) when is_atom(server), do: "PGlite #{inspect(server)}"
  def title(_server), do: "PGlite"

  @doc "Whether the server on a node is ready, and its figures, each with a title."
  @spec cards(PgliteEx.server(), node) :: [{String.t(), String.t()}]
  def cards(server, node) do
    case on(node, PgliteEx, :health, [server]) do
      {:ok, %{ready: ready, figures: figures}} ->
        state = if ready, do: "ready", else: "not ready"
        [{"State", state} | known(figures) ++ others(figures)]

      {:error, error} ->
        [{"State", "#{error.code}: #{Exception.message(error)}"}]
    end
  end

  defp known(figures) do
    for {name, title, unit} <- @known, figure = figures[name], do: {title, shown(unit, figure)}
  end

  defp others(figures) do
    names = for {name, _title, _unit} <- @known, do: name

    for {name, figure} <- figures |> Map.drop(["ready" | names]) |> Enum.sort(),
        do: {name, "#{figure}"}
  end

  defp shown(:bytes, figure), do: bytes(figure)
  defp shown(:number, figure), do: "#{figure}"

  @doc "The clusters of the server on a node that a table asks for."
  @spec clusters(PgliteEx.server(), query, node) :: rows
  def clusters(server, query, node) do
    node
    |> on(PgliteEx, :request, [server, "clusters", [], 1_000])
    |> or_none(&grouped/1)
    |> select(query)
  end

  # Every cluster's options begin with its name.
  defp grouped([{"name", name} | options]) do
    {own, others} = Enum.split_while(options, fn {key, _value} -> key != "name" end)

    %{"origin" => origin, "data" => data, "lifetime" => lifetime, "made" => made} =
      own = Map.new(own)

    cluster = %{
      name: name,
      origin: origin,
      connections: String.to_integer(own["connections"]),
      memory: String.to_integer(own["memory"]),
      lifetime: lifetime,
      data: data,
      made_at: made |> String.to_integer() |> DateTime.from_unix!(:microsecond)
    }

    [cluster | grouped(others)]
  end

  defp grouped([]), do: []

  @doc "The templates of the server on a node that a table asks for."
  @spec templates(PgliteEx.server(), query, node) :: rows
  def templates(server, query, node),
    do: node |> on(PgliteEx.Template, :list, [server]) |> or_none(& &1) |> select(query)

  defp or_none({:ok, entries}, rows), do: rows.(entries)
  defp or_none({:error, _error}, _rows), do: []

  defp select(rows, %{sort_by: sort_by, sort_dir: sort_dir, limit: limit, search: search}) do
    found = if search in [nil, ""], do: rows, else: Enum.filter(rows, &(&1.name =~ search))
    order = if sort_dir == :desc, do: :desc, else: :asc

    {found |> Enum.sort_by(&{key(&1[sort_by]), &1.name}, order) |> Enum.take(limit),
     length(found)}
  end

  defp key(%DateTime{} = time), do: DateTime.to_unix(time, :microsecond)
  defp key(value), do: value

  # Calls a function on a node; what happens to the server or the node meanwhile is an error like any other.
  defp on(node, module, function, arguments) do
    :erpc.call(node, module, function, arguments, 10_000)
  catch
    kind, reason ->
      {:error, %Error{code: "08006", message: Exception.format_banner(kind, reason)}}
  end

  @doc "A time to the second."
  @spec time(DateTime.t()) :: String.t()
  def time(time), do: time |> DateTime.truncate(:second) |> DateTime.to_string()

  @doc ~S"""
  A number of bytes for people.

      iex> Enum.map([12, 1_500, 69_200_000, 3_000_000_000], &PgliteEx.LiveDashboard.bytes/1)
      ["12 B", "1.5 kB", "69.2 MB", "3.0 GB"]
  """
  @spec bytes(non_neg_integer) :: String.t()
  def bytes(bytes) when bytes < 1_000, do: "#{bytes} B"

  def bytes(bytes) do
    {unit, name} =
      Enum.find([{1.0e9, "GB"}, {1.0e6, "MB"}, {1.0e3, "kB"}], fn {unit, _name} ->
        bytes >= unit
      end)

    "#{:erlang.float_to_binary(bytes / unit, decimals: 1)} #{name}"
  end
end
