defmodule PgliteEx.Template do
  @moduledoc """
  Templates: clusters that are prepared once, frozen, and cloned for every connection after that.

      {:ok, server} = PgliteEx.start_link(mode: :isolated, template: "my_app_test")

      PgliteEx.prepare(server, "my_app_test", fn connection_opts ->
        {:ok, repo} = MyApp.Repo.start_link(connection_opts)
        Ecto.Migrator.run(MyApp.Repo, :up, all: true)
        Supervisor.stop(repo)
      end, key: PgliteEx.Template.key("priv/repo/migrations"))

  Templates are kept in the server's cache directory. The key says what a template was made from:
  while it stays the same, `prepare/4` finds the template there and does nothing.
  """

  alias PgliteEx.{Error, RawConnection, ReadyForQuery, Server, Telemetry, WasmPort}

  @typedoc """
  A template: its name, the database in it, the key it was prepared with, its size on disk in
  bytes, and when it was made.
  """
  @type t :: %{
          name: String.t(),
          database: String.t(),
          key: String.t(),
          size: non_neg_integer,
          made_at: DateTime.t()
        }

  # Freezing writes the cluster's image, a few dozen megabytes, to the disk.
  @freeze_timeout 60_000

  @doc """
  Makes the template `name`, unless there is one with the same key.

  `fun` gets connection options (`PgliteEx.connection_opts/2`) of a live cluster that takes any
  number of connections and has nothing in it but an empty database called `name`. It must have
  closed its connections, or at least its transactions, when it returns; then the cluster is
  frozen. What `fun` raises is raised here, and nothing is kept.

  Options:

    * `:key` – what the template is made from, as a string; `key/2` makes one of files. Without a
      key the template is made every time.
  """
  @spec prepare(PgliteEx.server(), String.t(), (keyword -> term), key: String.t()) ::
          {:ok, :built | :reused} | {:error, Error.t()}
  def prepare(server, name, fun, options \\ []) when is_binary(name) and is_function(fun, 1) do
    key = options |> Keyword.validate!(key: nil) |> Keyword.fetch!(:key)
    started_at = System.monotonic_time()

    with {:ok, result} <- prepare_unless_there(server, name, key, fun) do
      Telemetry.execute(
        [:template, :prepare],
        %{duration: System.monotonic_time() - started_at},
        %{server: Server.options(server).name, name: name, key: key, built?: result == :built}
      )

      {:ok, result}
    end
  end

  defp prepare_unless_there(server, name, key, fun) do
    with {:ok, templates} <- list(server) do
      if key != nil and Enum.any?(templates, &(&1.name == name and &1.key == key)),
        do: {:ok, :reused},
        else: build(Server.options(server), name, key, fun)
    end
  end

  # A server of its own, so that nothing but `fun` leaves traces in the cluster.
  defp build(options, name, key, fun) do
    workshop_options =
      options
      |> Map.take([:executable, :pglite_dir, :cache_dir, :username, :log_level])
      |> Keyword.new()

    with {:ok, workshop} <- PgliteEx.start_link(workshop_options) do
      try do
        with :ok <- create_database(workshop, name) do
          fun.(PgliteEx.connection_opts(workshop, database: name))
          freeze_cluster_of(workshop, name, key)
        end
      after
        PgliteEx.stop(workshop)
      end
    else
      # The exit reason of a process that did not start, some with a stack trace.
      {:error, {%Error{} = error, _stacktrace}} -> {:error, error}
      {:error, %Error{} = error} -> {:error, error}
    end
  end

  # Whether it worked is seen when the session that is to be frozen asks for this database.
  defp create_database(workshop, name) do
    sql = "create database \"#{String.replace(name, "\"", "\"\"")}\""
    in_session(workshop, "postgres", &ask(&1, [<<?Q, byte_size(sql) + 5::32>>, sql, 0]))
  end

  defp freeze_cluster_of(workshop, name, key) do
    with :ok <- in_session(workshop, name, &freeze(&1, name, key: key)), do: {:ok, :built}
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
    %{"database" => database, "key" => key, "size" => size, "made" => made} = Map.new(own)

    template = %{
      name: name,
      database: database,
      key: key,
      size: String.to_integer(size),
      made_at: made |> String.to_integer() |> DateTime.from_unix!(:microsecond)
    }

    [template | group(others)]
  end

  defp group([]), do: []

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
    with {:ok, {wasm_port, id}} <- identity(connection),
         options = [{"connection", Integer.to_string(id)}],
         {:ok, _reply} <- WasmPort.request(wasm_port, "reset", options),
         do: :ok
  end

  @doc """
  Freezes the cluster of a raw connection (`PgliteEx.open/2`) as the template `name`.

  From then on isolated connections whose startup packet names that database are clones of it;
  the connection goes on. `{:error, %PgliteEx.Error{code: "55006"}}` while a transaction is open.

  Options: `:key`, as in `prepare/4`.
  """
  @spec freeze(PgliteEx.connection(), String.t(), key: nil | String.t()) ::
          :ok | {:error, Error.t()}
  def freeze(connection, name, options \\ []) when is_binary(name) do
    key = options |> Keyword.validate!(key: nil) |> Keyword.fetch!(:key)

    with {:ok, identity} <- identity(connection), do: freeze_identity(identity, name, key)
  end

  @doc false
  @spec freeze_identity({pid, PgliteEx.Frame.id()}, String.t(), nil | String.t()) ::
          :ok | {:error, Error.t()}
  def freeze_identity({wasm_port, id}, name, key) do
    options =
      [{"connection", Integer.to_string(id)}, {"name", name}] ++
        for key <- List.wrap(key), do: {"key", key}

    with {:ok, _reply} <- WasmPort.request(wasm_port, "freeze", options, @freeze_timeout), do: :ok
  end

  @doc """
  A key of files: the SHA-256 of the names and contents of all files in `directories`.

  `salt` is anything else that the template depends on, such as a version.

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
  @spec key(Path.t() | [Path.t()], term) :: String.t()
  def key(directories, salt \\ nil) do
    files =
      for directory <- List.wrap(directories),
          path <- Enum.sort(Path.wildcard(Path.join(directory, "**"), match_dot: true)),
          File.regular?(path) do
        [Path.relative_to(path, directory), 0, :crypto.hash(:sha256, File.read!(path))]
      end

    :crypto.hash(:sha256, [:erlang.term_to_binary(salt) | files]) |> Base.encode16(case: :lower)
  end

  defp identity(connection) do
    with {:error, :closed} <- RawConnection.identity(connection), do: {:error, closed()}
  end

  # Gives `fun` a connection whose session waits for input.
  defp in_session(server, database, fun) do
    with {:ok, connection} <- PgliteEx.open(server) do
      try do
        with :ok <- ask(connection, startup_packet(server, database)), do: fun.(connection)
      after
        PgliteEx.close(connection)
        # The mailbox is the caller's, who knows nothing of this connection.
        flush(connection)
      end
    end
  end

  # A startup packet of protocol 3.0.
  defp startup_packet(server, database) do
    parameters = ["user", 0, Server.options(server).username, 0, "database", 0, database, 0, 0]
    [<<IO.iodata_length(parameters) + 8::32, 3::16, 0::16>> | parameters]
  end

  # Sends a message, and receives whatever comes until the session waits for input again.
  defp ask(connection, message) do
    monitor = Process.monitor(connection)
    # Why it could not be sent comes as a message.
    _ = PgliteEx.send(connection, message)
    answer = await_ready(connection, monitor, <<>>)
    Process.demonitor(monitor, [:flush])
    answer
  end

  defp await_ready(connection, monitor, tail) do
    receive do
      {:pglite_ex, ^connection, {:data, bytes}} ->
        tail = ReadyForQuery.tail(tail, [bytes])
        if ReadyForQuery.at_end?(tail), do: :ok, else: await_ready(connection, monitor, tail)

      {:pglite_ex, ^connection, {:closed, reason}} ->
        {:error, Error.from_reason(reason)}

      {:DOWN, ^monitor, :process, ^connection, _killed} ->
        {:error, closed()}
    end
  end

  defp flush(connection) do
    receive do
      {:pglite_ex, ^connection, _event} -> flush(connection)
    after
      0 -> :ok
    end
  end

  defp closed, do: %Error{code: "08003", message: "the connection is closed"}
end
