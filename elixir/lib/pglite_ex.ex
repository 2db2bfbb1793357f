# It is long because it has what users call, with its documentation; what it does is in the modules that it names.
defmodule PgliteEx do
  @moduledoc """
  PostgreSQL inside an OTP supervision tree.

  A server is a supervisor that runs the program `pglite-port`, which hosts PostgreSQL 18, and a
  socket that every Postgres client can connect to. Add it in front of what uses it:

      children = [
        {PgliteEx, name: MyApp.Postgres, listen: {"127.0.0.1", 5433}},
        MyApp.Repo
      ]

  and point `MyApp.Repo` at `postgresql://postgres@127.0.0.1:5433/postgres`, or let its `init/2` ask
  `repo_config/4`. Drivers take what `connection_opts/2` returns:

      {:ok, server} = PgliteEx.start_link([])
      {:ok, conn} = Postgrex.start_link(PgliteEx.connection_opts(server))
      Postgrex.query!(conn, "select version()", [])

  The program ends with the VM, however the VM ends.

  ## Two modes

    * `:shared` (default): all connections are sessions of one database cluster, as with any
      PostgreSQL.
    * `:isolated`: every connection gets a cluster of its own, cloned from a template, which is gone
      when the connection closes. A pool of ten connections sees ten databases, so
      `connection_opts/2` sets the pool size to one.

  All options are described in `PgliteEx.Options`. Any number of servers can run beside each
  other. A `server` below is the pid that `start_link/1` returned, or the server's `:name`, on the
  node on which it runs.

  ## A database that is kept

  `data:` names a directory for the cluster of a `:shared` server, `database:` a database in it, and
  `after_start:` a function that brings it up to date at every start: see the guide
  "An application's own database".

  ## Branches

  `branch/2` makes a database cluster of its own beside that of a server, with what is in it at that
  moment: see `PgliteEx.Branch`. `PgliteEx.Sandbox` gives one to every test.

  ## Without a socket

  An implementation of the Postgres protocol can talk to a session by messages, as to a port:
  `open/2`, `send/2`, `close/1`.
  """

  alias PgliteEx.{
    Backup,
    Branch,
    Dump,
    Error,
    Identity,
    Limits,
    Listener,
    Move,
    Options,
    Parts,
    Password,
    RawConnection,
    Readiness,
    RepoConfig,
    Sandbox,
    Server,
    TaskServer,
    Template
  }

  alias PgliteEx.WasmPort

  # This is the whole interface in one place: most of it is documentation, and each function calls the
  # module that does its work.

  # How long a caller waits for a program that is being started, in milliseconds.
  @ready_timeout 5_000

  @type server :: Supervisor.supervisor()

  @typedoc "A connection without a socket."
  @type connection :: pid

  @doc """
  Starts a server; see `PgliteEx.Options` for the options.

  Returns when clients can connect: the program runs, the database is there, and the function of
  `:after_start` has returned. Raises `ArgumentError` for an option that
  is not allowed, and returns `{:error, reason}` when the program cannot be started or the
  address is taken; `Exception.format_exit/1` makes a sentence of the reason.

      {:ok, server} = PgliteEx.start_link(mode: :isolated, template: "my_app")
  """
  @spec start_link(keyword) :: Supervisor.on_start()
  def start_link(options \\ []), do: options |> Options.new!() |> Server.start_link()

  @doc """
  The child specification with which a server takes its place in a supervisor.

  Servers with different names can be children of one supervisor. A server beside which
  `mix pglite_ex.server --and` runs a task is not started a second time by an application that the task
  starts.

      iex> PgliteEx.child_spec(name: MyApp.Postgres).id
      {PgliteEx, MyApp.Postgres}
  """
  @spec child_spec(keyword) :: Supervisor.child_spec()
  def child_spec(options) do
    %{
      id: {__MODULE__, options[:name]},
      # A supervisor shows it in its reports.
      start: {TaskServer, :start_child, [Options.hide_secrets(options)]},
      type: :supervisor
    }
  end

  @doc """
  Stops a server that is not the child of a supervisor.

  Clients are told that the server stops, and the program has ended when this returns.
  """
  @spec stop(server) :: :ok
  def stop(server), do: Supervisor.stop(server)

  @doc """
  The options with which Postgrex and Ecto connect, changed and completed by `overrides`.

      {:ok, server} = PgliteEx.start_link(listen: {"127.0.0.1", 5433})
      PgliteEx.connection_opts(server, pool_size: 10)
      #=> [pglite_ex: server, url: nil, …, hostname: "127.0.0.1", port: 5433, username: "postgres",
      #=>  database: "postgres", pool_size: 10]

  Options that name another server in another way, such as a repo's `url:` and `socket_dir:`, are among
  them as `nil`, so that a repo that has these in its configuration connects to this server all the same.
  """
  @spec connection_opts(server | Branch.t(), keyword) :: keyword
  def connection_opts(server, overrides \\ []) do
    server
    |> Server.connection_opts(Branch.options(server), address(server))
    |> Sandbox.without_pool_size(overrides)
    |> Keyword.merge(overrides)
    |> Sandbox.with_pool()
  end

  @doc """
  The configuration of an Ecto repo that uses the server, for the `init/2` of the repo.

      @impl Ecto.Repo
      def init(context, config), do: {:ok, PgliteEx.repo_config(MyApp.Postgres, context, config)}

  The repo connects to this server, whatever its configuration names. One that is started with the
  options of `connection_opts/2`, such as those that the functions of `prepare/4` and `:after_start` get,
  connects as these options say.

  If the server does not run, the repo does not start, with a sentence about that as the reason; the
  same sentence comes from Mix tasks that need the database.

  `overrides` are as in `connection_opts/2`. A second repo on the same server has a database of its own with
  `database: "another"`, which `mix ecto.create` makes.
  """
  @spec repo_config(
          server | Branch.t(),
          context :: :supervisor | :runtime,
          config :: keyword,
          keyword
        ) :: keyword
  defdelegate repo_config(server, context, config, overrides \\ []), to: RepoConfig, as: :new

  @doc """
  The URL with which psql and everything else that is built on libpq connects.

  `database` is the server's, if no other is given. The URL of a branch has an address of the branch's own. The
  URL has the server's `:password` in it, if there is one.

      {:ok, server} = PgliteEx.start_link(listen: {"127.0.0.1", 5433})
      PgliteEx.url(server)
      #=> "postgresql://postgres@127.0.0.1:5433/postgres"
  """
  @spec url(server | Branch.t(), String.t() | nil) :: String.t()
  def url(server, database \\ nil)
  def url(%Branch{} = branch, database), do: branch |> Branch.gate!() |> url(database)

  def url(server, database) do
    options = Server.options(server)
    user = user(options.username, Password.reveal(options))
    database = encode(database || options.database)

    case address(server) do
      {:local, path} ->
        ".s.PGSQL." <> port = Path.basename(path)
        "postgresql://#{user}@/#{database}?host=#{encode(Path.dirname(path))}&port=#{port}"

      {host, port} ->
        "postgresql://#{user}@#{url_host(host)}:#{port}/#{database}"
    end
  end

  @doc """
  Where the server listens: `{ip, port}` with the real port, or `{:local, path}`.

  Clients of a branch's address are clients of the branch.
  """
  @spec address(server | Branch.t()) :: Options.listen()
  def address(%Branch{} = branch), do: branch |> Branch.gate!() |> address()
  def address(server), do: server |> Server.child(Listener) |> Listener.address()

  @doc """
  Waits until the server's program is ready, for at most `timeout` milliseconds.

  The program is ready when `start_link/1` returns. When the program ends later, the supervisor starts it anew, and
  connections and requests wait for it. The error's code is `"57P03"` when the deadline has passed; its
  message then says why the program ended last.
  """
  @spec await_ready(server | Branch.t(), timeout) :: :ok | {:error, Error.t()}
  def await_ready(server, timeout \\ @ready_timeout) do
    registry = server |> Branch.server() |> Parts.registry!()
    with {:ok, _wasm_port} <- Readiness.await(registry, timeout), do: :ok
  end

  @doc """
  Figures of the program, by their names.

    * `"connections"`: connections that are open; `"connections_opened"`: those that were opened since the program
      started
    * `"shared_sessions"`: sessions in the shared cluster
    * `"memory"`: resident memory of the program, in bytes
    * `"private_memory"`, `"private_files"` and their sum `"private"`: memory and files that isolated connections do
      not share with others, in bytes
    * `"linear_memory"`, `"files_in_memory"`, `"shared_memory"`: what clusters have allocated; `"images"`: what their
      processes begin with; `"memory_used"`: what counts against `"memory_limit"`, if there is one (`PgliteEx.Limits`)
    * `"queued_frames"`: bytes that the program has for this node, which has not read them yet
    * `"turns"`: turns that the processes of all clusters have begun
    * `"warm"`: clones of templates that are ready
    * `"ready"`: 1 if clients get a session, else 0

      {:ok, %{"connections" => 2}} = PgliteEx.stats(server)

  Those of a branch are its `"connections"`, its `"origin"`, its `"data"` (the directory, or an empty
  string), its `"lifetime"`, when it was `"made"`, in microseconds since 1970, its `"memory"` and `"disk"`, and its
  `"memory_limit"` and `"disk_limit"`, empty strings without one.
  """
  @spec stats(server | Branch.t()) ::
          {:ok, %{String.t() => integer | String.t()}} | {:error, Error.t()}
  def stats(server) do
    stats =
      case server do
        %Branch{} = branch -> Branch.stats(branch)
        server -> request(server, "stats")
      end

    with {:ok, stats} <- stats do
      {:ok, Map.new(stats, fn {key, value} -> {key, number_or_string(value)} end)}
    end
  end

  @doc """
  Whether the server is in order, for an endpoint that a load balancer or an orchestrator asks.

    * `{:ok, %{live: true, ready: true, figures: figures}}` – the program answers and lets clients in; the figures are
      those of `stats/1`
    * `{:ok, %{live: true, ready: false, figures: figures}}` – the program answers; the function of `:after_start` has
      not returned
    * `{:error, error}` – the program does not answer within `timeout` milliseconds: it is being started
      (`"57P03"`), has just ended or the server is stopped (`"57P01"`), or hangs (`:timeout`)

  It neither raises nor exits, whatever happens to the server meanwhile. Of a branch, it tells about the branch's server.

      case PgliteEx.health(MyApp.Postgres) do
        {:ok, %{ready: true}} -> send_resp(conn, 200, "ready")
        _starting_or_error -> send_resp(conn, 503, "not ready")
      end
  """
  @spec health(server | Branch.t(), timeout) ::
          {:ok, %{live: true, ready: boolean, figures: %{String.t() => integer}}}
          | {:error, Error.t()}
  defdelegate health(server, timeout \\ 1_000), to: PgliteEx.Health, as: :check

  @doc """
  Sends a request to the program and waits for its reply, for at most `timeout` milliseconds.

  For verbs that have no function of their own; ARCHITECTURE.md lists them. The options of the
  reply come in their order, and keys may repeat. The error's code is the program's, `:timeout`,
  `"57P03"` when the program had not started in that time, or `"57P01"` when it is gone before it has
  replied. Raises `ArgumentError` for strings with a NUL or that are not UTF-8, and for an empty verb or
  key. Requests do not wait for the function of `:after_start`, so that it can make them.

      {:error, %PgliteEx.Error{code: "0A000"}} = PgliteEx.request(server, "dance")
  """
  @spec request(server | Branch.t(), String.t(), [{String.t(), String.t()}], timeout) ::
          {:ok, [{String.t(), String.t()}]} | {:error, Error.t()}
  def request(server, verb, options \\ [], timeout \\ 5_000) do
    registry = server |> Branch.server() |> Parts.registry!()
    started_at = System.monotonic_time(:millisecond)

    with {:ok, wasm_port} <- Readiness.await(registry, timeout, :started) do
      waited = System.monotonic_time(:millisecond) - started_at
      left = if timeout == :infinity, do: timeout, else: max(timeout - waited, 0)
      settings = [timeout: left, server: Parts.options!(registry).name]
      WasmPort.request(wasm_port, verb, options, settings)
    end
  end

  @doc """
  Has the server read its files again, as `SIGHUP` does with PostgreSQL; sessions go on.

  These are certificate, key and authorities of `ssl:`, the rules of `auth:`, the configuration files of all clusters,
  and what is installed in extensions. New connections see the new certificate, those that are open keep what they began
  with. Call it when a certificate was renewed.

  If a file of `ssl:` cannot be used, all of them from before stay in use, and a warning with its path and the reason goes
  to Logger. The rest is read all the same, and the error has the code `:unusable_certificate`. Others are those of
  `request/4`.

      :ok = PgliteEx.reload(MyApp.Postgres)
  """
  @spec reload(server | Branch.t(), timeout) :: :ok | {:error, Error.t()}
  def reload(server, timeout \\ 5_000) do
    read = server |> Branch.server() |> Parts.registry!() |> Identity.reload(timeout)
    with {:ok, _none} <- request(server, "reload", [], timeout), do: read
  end

  @doc """
  Backs the shared cluster of a running server, or a branch, up into the file `path`, while its sessions go on.

  The file is a tar archive of the cluster, compressed if its name ends in `gz`; an existing file is
  replaced when the backup is complete. It has everything that was committed when the backup began. The
  checksums of all pages are verified on the way. The result has the number of `:files`, their `:bytes`,
  and the verified `:pages`.

  Options: `:database` and `:username`, for the session that the program makes for it, by default those of
  the server; the role must be a superuser. `:timeout` in milliseconds, default `:infinity`.

      {:ok, %{files: _, bytes: _}} = PgliteEx.backup(MyApp.Postgres, "/backups/my_app.tar.gz")

  A backup can be made in the function of `:after_start`, before migrations. A server in `:isolated` mode
  has nothing to back up; the error has the code `"0A000"`.
  """
  @spec backup(server | Branch.t(), Path.t(), keyword) ::
          {:ok, %{atom => non_neg_integer}} | {:error, Error.t()}
  defdelegate backup(server, path, options \\ []), to: Backup

  @doc """
  Restores a backup into `directory`, which is empty or not there; a server opens it with `data:`.

  The file may also be one of PGlite's `dumpDataDir`. All checksums are verified. When this returns
  `:ok`, everything is on the disk; otherwise the directory has no cluster. The error has the code
  `:restore_failed` and the program's message.

  Options: `:executable`, as for a server.

      :ok = PgliteEx.restore("/backups/my_app.tar.gz", "/var/lib/my_app/restored")
  """
  @spec restore(Path.t(), Path.t(), executable: nil | Path.t()) :: :ok | {:error, Error.t()}
  defdelegate restore(file, directory, options \\ []), to: Backup

  @doc """
  Dumps a database of the shared cluster of a running server, or of a branch, into the file `path`, with
  PostgreSQL's own `pg_dump`, which runs in the program of the server.

  The file appears when it is complete. The result has the number of `:bytes` that were written.

  Options: `:options`, a list of those of `pg_dump`, such as `["--schema-only", "--format=custom"]`; without
  a format the dump is an SQL file, which `load/3` and `psql` run. `:database` and `:username`, for the session
  that the program makes for it, by default those of the server. `:timeout` in milliseconds, default
  `:infinity`.

      {:ok, %{bytes: _}} = PgliteEx.dump(MyApp.Postgres, "/backups/my_app.sql")

  A server in `:isolated` mode has nothing to dump; the error has the code `"0A000"`. A message of `pg_dump` is
  an error with the code `"58030"`.
  """
  @spec dump(server | Branch.t(), Path.t(), keyword) ::
          {:ok, %{bytes: non_neg_integer}} | {:error, Error.t()}
  defdelegate dump(server, path, options \\ []), to: Dump

  @doc """
  Runs the SQL file `path`, such as a dump of `dump/3`, in the shared cluster of a running server or in a
  branch.

  The file is read while it runs, so that its size does not matter. `COPY ... FROM stdin` with its rows is
  understood, and the commands of `psql` that `pg_dump` writes. The first statement that fails ends it; the
  error's message has the line. The result has the number of `:statements`.

  Options: `:transaction`, whether all statements are one transaction, default `true`; `:database`, `:username`
  and `:timeout` as for `dump/3`.

      {:ok, %{statements: _}} = PgliteEx.load(MyApp.Postgres, "/backups/my_app.sql")
  """
  @spec load(server | Branch.t(), Path.t(), keyword) ::
          {:ok, %{statements: non_neg_integer}} | {:error, Error.t()}
  defdelegate load(server, path, options \\ []), to: Dump

  @doc """
  Moves a database of a `:shared` server, or of a branch, to an ordinary PostgreSQL, version 14 or later, while it is in
  use, by logical replication. The guide "Moving out" has all steps of it.

  The server has `settings: [wal_level: "logical"]` and an address that the target's server can reach. `url` is
  `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; the database there is created, and must not be there
  before. Returns when all tables are compared, as they were in the moment of the switch: their names as SQL has
  them, the numbers of their `:rows` and of the `:rows_in_target`, and whether they are the `:same?`, by digests of all
  rows. A table that is not is in the result too.

  Options:

    * `:database` – which one is moved; default: that of the server
    * `:on_progress` – a function that is called in the calling process with `{:progress, line}` for each line that the
      program says, the last one of a failure too, and with `{:switched, line}` at the switch: from then on the target
      takes writes, the source only reads, and the sessions of the source are ended. The application connects to the
      target then, and does not wait for the result. If the function fails, the move is broken off
    * `:source_for_target` – the URL by which the target's server connects to the source, if it is not the server's. It
      has to be given if the server has a password
    * `:start_over` – whether the target's database is dropped if an earlier move has left it unfinished; default `false`
    * `:timeout` – in milliseconds, default `:infinity`. A move that takes longer is broken off, unless it has switched

  Before the switch, an error, and the end of the calling process or of the VM, leave the source as it was, and the
  target without the database. The error has the code `:move_failed` and the program's message; `:timeout`; `:invalid_options` for a
  password without `:source_for_target`; or `"0A000"` for a server in `:isolated` mode.

  No password is in the list of processes. The target has that of `:source_for_target` until the switch.

      {:ok, tables} = PgliteEx.move(MyApp.Postgres, "postgresql://postgres@db.example.com/my_app")
      true = Enum.all?(tables, & &1.same?)
  """
  @spec move(server | Branch.t(), String.t(),
          database: nil | String.t(),
          on_progress: nil | ({:progress | :switched, String.t()} -> term),
          source_for_target: nil | String.t(),
          start_over: boolean,
          timeout: timeout
        ) ::
          {:ok,
           [
             %{
               table: String.t(),
               rows: non_neg_integer,
               rows_in_target: non_neg_integer,
               same?: boolean
             }
           ]}
          | {:error, Error.t()}
  defdelegate move(server, url, options \\ []), to: Move

  @doc """
  Makes a branch: a cluster of its own in the program of the server, which begins with what is in another one.

  The result is a handle, which can be used where a server is; see `PgliteEx.Branch`.

      {:ok, branch} = PgliteEx.branch(server)
      {:ok, conn} = Postgrex.start_link(PgliteEx.connection_opts(branch, pool_size: 4))
      {:ok, experiment} = PgliteEx.branch(branch)

  A branch of a `:shared` server begins with what is committed in the server's cluster at that moment, one of
  a branch with what is committed there. A branch of an `:isolated` server, whose connections have clusters
  of their own, begins as the template that they clone. Open transactions are not part of a branch.

  Options:

    * `:template` – begins as this template instead (`PgliteEx.Template`);
    * `:owner` – the process with whose end the branch is dropped; default: the calling process. `:none`: it
      lives until it is dropped, or the program of the server ends;
    * `:database` – the database that `connection_opts/2` names; default: that of the origin;
    * `:name` – how its cluster is called in the program, and in `pglite.cluster`; default: a name that is
      not used again;
    * `:data` – a directory to keep it in, which is empty or not there, or has a cluster already, which is
      opened then. Default: it is in memory;
    * `:memory_limit`, `:disk_limit` – those of its cluster: see `PgliteEx.Limits`. Default: those of its origin;
    * `:settings` – settings of its cluster, as in `postgresql.conf`: `[work_mem: "16MB"]`. Others are those
      of the server.

  Raises `ArgumentError` for another option or value. The error has the code `"3D000"` when the template or
  branch is not there, and `"42710"` when the name is taken.
  """
  @spec branch(server | Branch.t(), keyword) :: {:ok, Branch.t()} | {:error, Error.t()}
  defdelegate branch(server, options \\ []), to: Branch, as: :create

  @doc """
  As `branch/2`, and raises the error.

      branch = PgliteEx.branch!(server, template: "my_app_test")
  """
  @spec branch!(server | Branch.t(), keyword) :: Branch.t()
  def branch!(server, options \\ []) do
    case branch(server, options) do
      {:ok, branch} -> branch
      {:error, error} -> raise error
    end
  end

  @doc """
  Drops a branch. Its sessions end with SQLSTATE `57P01`, and branches of it stay.

  The error's code is `"3D000"` when it is not there any more.

      :ok = PgliteEx.drop(branch)
  """
  @spec drop(Branch.t()) :: :ok | {:error, Error.t()}
  defdelegate drop(branch), to: Branch

  @doc """
  Makes a template for isolated servers, unless it is there: see `PgliteEx.Template.prepare/4`.
  """
  @spec prepare(server | Branch.t(), String.t(), (keyword -> term), keyword) ::
          {:ok, :built | :reused} | {:error, Error.t()}
  defdelegate prepare(server, name, fun, options \\ []), to: Template

  @doc """
  Makes a template of the cluster of a raw connection: see `PgliteEx.Template.freeze/3`.
  """
  @spec freeze(connection, String.t(), keyword) :: :ok | {:error, Error.t()}
  defdelegate freeze(connection, name, options \\ []), to: Template

  @doc """
  Opens a connection without a socket, which belongs to the calling process and ends with it.

  As with a port, what Postgres sends arrives as messages, split anywhere:

    * `{:pglite_ex, connection, {:data, bytes}}`
    * `{:pglite_ex, connection, {:closed, reason}}`, the last one, with a map of `"severity"`,
      `"code"` (SQLSTATE) and `"message"`.

  Options:

    * `:active` – `true` (default): everything is delivered as it comes; `:once`: one message,
      and the next after `activate/2`; `false`: nothing before `activate/2`. With `:once`, a
      result of any size takes no more of the VM's memory than one window (256 KiB).
    * `:mode` – `:shared` or `:isolated`, if it is not to be the server's. A branch has no modes.
    * `:memory_limit`, `:disk_limit` – those of its cluster in mode `:isolated`: see `PgliteEx.Limits`. Default: those
      of its template.
    * `:trusted` – whether the session is let in as the role of its startup packet without a password, whatever the
      server's `:auth` says. Default `true`: the connection is the application's own. One that stands for a
      client elsewhere has to be opened with `false`, unless the application has authenticated the client.

  Raises `ArgumentError` for another option or value. Waits for a program that is being restarted, as
  `await_ready/2` does by default, and returns its error.

  The first bytes to send are a startup packet:

      {:ok, conn} = PgliteEx.open(server)
      startup = <<3::16, 0::16, "user", 0, "postgres", 0, "database", 0, "postgres", 0, 0>>
      :ok = PgliteEx.send(conn, [<<byte_size(startup) + 4::32>>, startup])

      receive do
        {:pglite_ex, ^conn, {:data, <<"R", _::binary>>}} -> :authentication_ok
      end
  """
  @spec open(server | Branch.t(),
          active: RawConnection.active(),
          mode: :shared | :isolated,
          trusted: boolean,
          memory_limit: Limits.size(),
          disk_limit: Limits.size()
        ) ::
          {:ok, connection} | {:error, Error.t()}
  def open(server, options \\ []) do
    options =
      Keyword.validate!(options, [active: true, mode: nil, trusted: true] ++ Limits.keys())

    allow!(options, :active, [true, :once, false])
    allow!(options, :trusted, [true, false])
    modes = if is_struct(server, Branch), do: [], else: [:shared, :isolated]
    allow!(options, :mode, modes ++ [nil])
    mode = for mode <- List.wrap(options[:mode]), do: {"mode", Atom.to_string(mode)}
    trusted = {"trusted", Atom.to_string(options[:trusted])}

    frame_options =
      [trusted | mode] ++ Limits.frame_options(options) ++ Branch.frame_options(server)

    registry = server |> Branch.server() |> Parts.registry!()

    with {:ok, wasm_port} <- Readiness.await(registry, @ready_timeout) do
      RawConnection.open(registry, wasm_port, %{
        server: Parts.options!(registry).name,
        frame_options: frame_options,
        owner: self(),
        active: options[:active]
      })
    end
  end

  @doc """
  Sends bytes of the Postgres protocol on a raw connection, split anywhere.

  Returns when the connection's window has admitted them, so a sender goes as fast as Postgres
  reads.
  """
  @spec send(connection, iodata) :: :ok | {:error, :closed}
  defdelegate send(connection, bytes), to: RawConnection

  @doc """
  Sets how a raw connection delivers from now on: `true`, `:once` or `false`; see `open/2`.
  """
  @spec activate(connection, RawConnection.active()) :: :ok | {:error, :closed}
  defdelegate activate(connection, active \\ :once), to: RawConnection

  @doc "Closes a raw connection; nothing more is delivered from it."
  @spec close(connection) :: :ok
  defdelegate close(connection), to: RawConnection

  defp allow!(options, key, allowed) do
    unless options[key] in allowed do
      allowed = Enum.map_join(allowed, ", ", &inspect/1)
      raise ArgumentError, "option #{key}: #{inspect(options[key])} is not one of #{allowed}"
    end
  end

  defp number_or_string(value) do
    case Integer.parse(value) do
      {number, ""} -> number
      _text -> value
    end
  end

  defp url_host(host) when tuple_size(host) == 8, do: "[#{:inet.ntoa(host)}]"
  defp url_host(host), do: :inet.ntoa(host)

  defp user(name, nil), do: encode(name)
  defp user(name, password), do: encode(name) <> ":" <> encode(password)

  defp encode(text), do: URI.encode(text, &URI.char_unreserved?/1)
end
