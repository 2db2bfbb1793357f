defmodule PgliteEx.Template do
  @moduledoc """
  Templates: clusters that are prepared once, frozen, and cloned for every connection after that.

      {:ok, server} = PgliteEx.start_link(mode: :isolated, template: "my_app_test")

      PgliteEx.prepare(server, "my_app_test", fn connection_opts ->
        {:ok, repo} = MyApp.Repo.start_link(connection_opts ++ [name: nil, pool_size: 2])
        Ecto.Migrator.run(MyApp.Repo, :up, all: true, dynamic_repo: repo)
        Supervisor.stop(repo)
      end, key: PgliteEx.Template.key(MyApp.Repo))

  Templates are kept in the server's cache directory. The key says what a template was made from:
  while it stays the same, and the function too, `prepare/4` finds the template there and does nothing.
  """

  alias PgliteEx.{
    Branch,
    Connection,
    Delivery,
    Error,
    Fingerprint,
    Limits,
    RawConnection,
    Telemetry,
    WasmPort,
    Workshop
  }

  @typedoc """
  A template: its name, the database in it, the key it was prepared with, its size on disk in
  bytes, when it was made, and its digest, the same wherever the same template is.
  """
  @type t :: %{
          name: String.t(),
          database: String.t(),
          key: String.t(),
          size: non_neg_integer,
          made_at: DateTime.t(),
          digest: String.t()
        }

  # Freezing writes the cluster's image, a few dozen megabytes, to the disk.
  @freeze_timeout 60_000

  @doc """
  Makes the template `name`, unless there is one with the same key.

  `fun` gets connection options (`PgliteEx.connection_opts/2`) of a live cluster that takes any
  number of connections and has nothing in it but an empty database called `name`. It must have
  closed its connections, or at least its transactions, when it returns; then the cluster is
  frozen. A function that has changed nothing in the cluster, because it has connected elsewhere, is
  an error with the code `:prepare_failed`; so is one that leaves a transaction open.

  `fun` runs in a process of its own, which ends with it: a repo that `fun` starts and does not stop
  ends then too. When `fun` raises, throws or exits, or a process that it is linked to crashes,
  nothing is kept, and the error has the code `:prepare_failed` and says what happened. The caller is
  linked to none of these processes, and need not trap exits.

  Options:

    * `:key` – what the template is made from, as a string; `key/2` makes one of a repo and of files.
      Without a key the template is made every time;
    * `:memory_limit`, `:disk_limit` – those of the template's clones: see `PgliteEx.Limits`.

  With a key the template is made again when one of these has changed: the key; `fun`, by the code of its
  module, or the file of its script, and the values that it has captured; the limits; the server's `:username`
  and `:icu_data`; the version of the program. Other modules that `fun` calls are not noticed; a salt of
  `key/2` is for these, or `key("lib/my_app/seeds.ex")`.
  """
  @spec prepare(PgliteEx.server() | Branch.t(), String.t(), (keyword -> term), keyword) ::
          {:ok, :built | :reused} | {:error, Error.t()}
  def prepare(server, name, fun, options \\ []) when is_binary(name) and is_function(fun, 1) do
    options = Keyword.validate!(options, [:key | Limits.keys()])
    limits = Limits.frame_options(options)
    key = options[:key]
    %{name: server_name, username: username} = Branch.options(server)
    metadata = %{server: server_name, name: name, key: key}
    key = key && full_key(key, fun, username, limits)
    options = Keyword.put(options, :key, key)

    Telemetry.span([:prepare], metadata, fn ->
      case prepare_unless_there(server, name, options, fun) do
        {:ok, result} -> {{:ok, result}, Map.merge(metadata, %{result: result, error: nil})}
        {:error, error} -> {{:error, error}, Map.merge(metadata, %{result: nil, error: error})}
      end
    end)
  end

  # A part of the digest is enough to notice a change, and is listed with the templates.
  defp full_key(key, fun, username, limits) do
    <<digest::binary-size(8), _rest::binary>> =
      :crypto.hash(:sha256, [Fingerprint.of(fun), username | Enum.map(limits, &Tuple.to_list/1)])

    key <> "+" <> Base.encode16(digest, case: :lower)
  end

  defp prepare_unless_there(server, name, options, fun) do
    key = options[:key]

    with {:ok, templates} <- list(server) do
      if key != nil and Enum.any?(templates, &(&1.name == name and &1.key == key)),
        do: {:ok, :reused},
        else: Workshop.build(Branch.options(server), name, options, fun)
    end
  end

  @doc """
  The templates that there are.

      {:ok, [%{name: "my_app_test", key: "9f86…", size: 4_194_304, made_at: ~U[…]}]} =
        PgliteEx.Template.list(server)
  """
  @spec list(PgliteEx.server()) :: {:ok, [t]} | {:error, Error.t()}
  def list(server) do
    with {:ok, options} <- PgliteEx.request(server, "templates"), do: {:ok, group(options)}
  end

  # Every template's options begin with its name.
  defp group([{"name", name} | options]) do
    {own, others} = Enum.split_while(options, fn {key, _value} -> key != "name" end)
    %{"database" => database, "key" => key, "size" => size, "made" => made} = own = Map.new(own)

    template = %{
      name: name,
      database: database,
      key: key,
      size: String.to_integer(size),
      made_at: made |> String.to_integer() |> DateTime.from_unix!(:microsecond),
      digest: own["digest"]
    }

    [template | group(others)]
  end

  defp group([]), do: []

  @doc """
  Writes the template `name` into the file `path`, from which `import/3` reads it, on this machine or on another.

  An existing file is replaced when the new one is complete. The result has its `:bytes`, about 70 million
  that compress to a sixth, and the `:digest` of the template. `:timeout` in milliseconds, default `:infinity`.

      {:ok, %{bytes: _, digest: _}} =
        PgliteEx.Template.export(MyApp.TestPostgres, "my_app_test", "my_app_test.template")
  """
  @spec export(PgliteEx.server() | Branch.t(), String.t(), Path.t(), keyword) ::
          {:ok, %{bytes: non_neg_integer, digest: String.t()}} | {:error, Error.t()}
  def export(server, name, path, options \\ []) when is_binary(name) do
    options = Keyword.validate!(options, timeout: :infinity)
    request_options = [{"name", name}, {"path", Path.expand(path)}]

    with {:ok, reply} <-
           PgliteEx.request(server, "export_template", request_options, options[:timeout]) do
      %{"bytes" => bytes, "digest" => digest} = Map.new(reply)
      {:ok, %{bytes: String.to_integer(bytes), digest: digest}}
    end
  end

  @doc """
  Puts the template in the file `path` into the server's cache, under the name with which `export/4` has written it.

  One of the same name is replaced; connections that have a clone of it keep that. If it is there already, nothing
  is written, and the `:result` is `:reused` in place of `:imported`. A template that was prepared with a key has it
  here as well, so that `prepare/4` with the same key and function finds it.

  The program has to be of the same version as the one that has exported it, with the same ICU data, and with the same
  extensions if the template has any. Otherwise the error has the code `"55000"` and says what differs. A file that is
  damaged has the code `"XX001"`. The file need not be trusted more than SQL: what is in it can do what a database can.

  `:timeout` in milliseconds, default `:infinity`.

      {:ok, %{name: "my_app_test", result: :imported}} =
        PgliteEx.Template.import(MyApp.TestPostgres, "my_app_test.template")
  """
  @spec import(PgliteEx.server() | Branch.t(), Path.t(), keyword) ::
          {:ok,
           %{
             name: String.t(),
             database: String.t(),
             digest: String.t(),
             result: :imported | :reused
           }}
          | {:error, Error.t()}
  def import(server, path, options \\ []) do
    options = Keyword.validate!(options, timeout: :infinity)
    request_options = [{"path", Path.expand(path)}]

    with {:ok, reply} <-
           PgliteEx.request(server, "import_template", request_options, options[:timeout]) do
      %{"name" => name, "database" => database, "digest" => digest, "new" => new} = Map.new(reply)
      result = if new == "true", do: :imported, else: :reused
      {:ok, %{name: name, database: database, digest: digest, result: result}}
    end
  end

  @doc """
  Sends the template `name` to the servers of other nodes, over Erlang's distribution.

  A node that has it already is not sent it again. It goes to all others at the same time, compressed and in pieces of
  which one is on its way to a node at any time, so that the nodes' other messages do not wait for it.

  Options:

    * `:server` – the name of the server on the other nodes; by default `server`, if that is a name;
    * `:timeout` – for each node, in milliseconds, default `:infinity`.

  The result says of each node whether the template was `:sent` or `:reused`. If one of the nodes did not get it, the
  error has the code of the first that did not, and its message names all of them with their reasons; the others have
  it.

      {:ok, %{"tests@two": :sent, "tests@three": :reused}} =
        PgliteEx.Template.replicate(MyApp.TestPostgres, "my_app_test", Node.list())

  The guide "Tests on several machines" has more of it.
  """
  @spec replicate(PgliteEx.server(), String.t(), [node], keyword) ::
          {:ok, %{node => :sent | :reused}} | {:error, Error.t()}
  def replicate(server, name, nodes, options \\ []) when is_binary(name) and is_list(nodes) do
    options = Keyword.validate!(options, server: server, timeout: :infinity)

    if is_pid(options[:server]),
      do: raise(ArgumentError, "a pid is of one node: name the server of the others with server:")

    with {:ok, digest} <- digest(server, name),
         do: Delivery.deliver(server, name, digest, nodes, options)
  end

  defp digest(server, name) do
    with {:ok, templates} <- list(server) do
      case Enum.find(templates, &(&1.name == name)) do
        %{digest: digest} -> {:ok, digest}
        nil -> {:error, %Error{code: "42704", message: "template \"#{name}\" does not exist"}}
      end
    end
  end

  @doc "Removes a template; connections that have a clone of it keep that."
  @spec drop(PgliteEx.server(), String.t()) :: :ok | {:error, Error.t()}
  def drop(server, name) do
    with {:ok, _reply} <- PgliteEx.request(server, "drop_template", [{"name", name}]), do: :ok
  end

  @doc """
  Puts the cluster of a raw isolated connection back to its template, without closing it.

  The session starts anew too: what it had prepared, set, or left open is gone.
  """
  @spec reset(PgliteEx.connection()) :: :ok | {:error, Error.t()}
  def reset(connection) do
    with {:ok, %{wasm_port: wasm_port, id: id, server: server}} <- identity(connection),
         options = [{"connection", Integer.to_string(id)}],
         {:ok, _reply} <- WasmPort.request(wasm_port, "reset", options, server: server),
         do: :ok
  end

  @doc """
  Freezes the cluster of a raw connection (`PgliteEx.open/2`) as the template `name`.

  From then on isolated connections whose startup packet names that database are clones of it;
  the connection goes on. `{:error, %PgliteEx.Error{code: "55006"}}` while a transaction is open.

  Options: `:key`, `:memory_limit` and `:disk_limit`, as in `prepare/4`.
  """
  @spec freeze(PgliteEx.connection(), String.t(), keyword) :: :ok | {:error, Error.t()}
  def freeze(connection, name, options \\ []) when is_binary(name) do
    options = Keyword.validate!(options, [:key | Limits.keys()])

    with {:ok, identity} <- identity(connection), do: freeze_identity(identity, name, options)
  end

  @doc false
  @spec freeze_identity(Connection.identity(), String.t(), keyword) :: :ok | {:error, Error.t()}
  def freeze_identity(%{wasm_port: wasm_port, id: id, server: server}, name, options) do
    key = for key <- List.wrap(options[:key]), do: {"key", key}

    options =
      [{"connection", Integer.to_string(id)}, {"name", name} | key] ++
        Limits.frame_options(options)

    settings = [timeout: @freeze_timeout, server: server]
    with {:ok, _reply} <- WasmPort.request(wasm_port, "freeze", options, settings), do: :ok
  end

  @doc """
  A key of what templates are made from: files, directories with all files in them, and Ecto repos.

  It is the SHA-256 of the names and contents of the files. Of a repo, it covers the migrations (in
  `priv/repo/migrations`, or where its configuration says) and the options of its configuration whose
  names begin with `migration_`. `salt` is anything else that the template depends on, such as a version.

  Raises `ArgumentError` for a path that is not there.

      iex> directory = Path.join(System.tmp_dir!(), "pglite_ex-doctest-\#{System.pid()}")
      iex> File.mkdir_p!(directory)
      iex> File.write!(Path.join(directory, "1_users.exs"), "create table users")
      iex> key = PgliteEx.Template.key(directory)
      iex> File.write!(Path.join(directory, "2_posts.exs"), "create table posts")
      iex> key == PgliteEx.Template.key(directory)
      false
      iex> File.rm_rf!(directory)
      iex> byte_size(key)
      64
  """
  @spec key(source | [source], term) :: String.t() when source: Path.t() | module
  def key(sources, salt \\ nil) do
    contents = sources |> List.wrap() |> Enum.map(&contents/1)

    :crypto.hash(:sha256, [:erlang.term_to_binary(salt) | contents])
    |> Base.encode16(case: :lower)
  end

  defp contents(repo) when is_atom(repo) do
    options =
      repo.config()
      |> Enum.filter(fn {key, _value} ->
        key |> to_string() |> String.starts_with?("migration_")
      end)
      |> Enum.sort()

    # Ecto is no dependency.
    path = apply(Ecto.Migrator, :migrations_path, [repo])
    [contents(path), :erlang.term_to_binary(options)]
  end

  defp contents(path) do
    cond do
      File.dir?(path) ->
        for file <- Enum.sort(Path.wildcard(Path.join(path, "**"), match_dot: true)),
            File.regular?(file),
            do: [Path.relative_to(file, path), 0, digest(file)]

      File.regular?(path) ->
        [Path.basename(path), 0, digest(path)]

      true ->
        raise ArgumentError,
              "a template cannot be made from #{Path.expand(path)}: there is no such file or directory"
    end
  end

  defp digest(file), do: :crypto.hash(:sha256, File.read!(file))

  defp identity(connection) do
    with {:error, :closed} <- RawConnection.identity(connection), do: {:error, closed()}
  end

  defp closed, do: %Error{code: "08003", message: "the connection is closed"}
end
