defmodule PgliteEx.Options do
  @moduledoc """
  The options of a server, validated once, before anything is started.

    * `:name` – how the server is registered: an atom, `{:global, term}` or `{:via, module, term}`.
      Default: not registered, use the pid.
    * `:mode` – `:shared` (default): all connections are sessions of one database cluster;
      `:isolated`: every connection gets a cluster of its own, which is gone when it closes.
    * `:database` – the database that `PgliteEx.connection_opts/2` names. In `:shared` mode it is made
      when it is not there, before clients are let in, with `:username` as its owner. In `:isolated`
      mode it is the name of a template, or of the database in one, by default that of `:template`. It has
      to be given in `:shared` mode with `:template`. Without `:template`, the default is `"postgres"`.
    * `:username` – the role that `PgliteEx.connection_opts/2` names. In `:shared` mode it is made when
      it is not there, as a superuser. Default `"postgres"`.
    * `:auth` – how clients authenticate. `:trust`: not at all; every client that reaches the socket can
      be the superuser. `:scram_sha_256`: by passwords. A path: as the rules in that file say, in
      the format of PostgreSQL's `pg_hba.conf`. Default: not at all, or as the rules in the directory of `:data`
      say. Connections that this library makes by itself, and those of `PgliteEx.open/2`, are not asked.
    * `:password` – the password of `:username`, which `PgliteEx.connection_opts/2` and `PgliteEx.url/2` name: a
      string, `{:system, "VARIABLE"}`, or a function without arguments, which is called whenever it is
      needed. It is set at every start of the program, in every cluster but branches of clusters, which have
      the passwords of their origin. It is not shown in states, logs or lists of processes. Other roles get
      theirs by SQL.
    * `:trust_everyone_who_can_connect` – has to be `true` for a server that other machines can reach and that
      trusts every client, because it has no `:auth`.
    * `:after_start` – in `:shared` mode, a function that runs after every start of the program, the
      restarts included, while clients wait: `fn connection_opts -> … end`, or `{module, function,
      arguments}`, which is called with the connection options before the other arguments. Only
      connections made with these options (as those of `PgliteEx.connection_opts/2`) are let in, and
      only until the function has returned. They lead to an address of their own, so a repo that runs
      already, and waits like other clients, cannot be used; start another one, as in the guide
      "An application's own database". Requests, such as `PgliteEx.backup/3`, are carried out
      meanwhile. When the function raises, exits, or returns `:error` or `{:error, reason}`, the start
      has failed: `PgliteEx.start_link/1` returns the error, or, at a restart, the supervisor tries
      again, up to ten times in ten seconds, and ends then.
    * `:after_start_timeout` – how long the database may take to be made and the function to return, in
      milliseconds, or `:infinity`. Default 300,000.
    * `:listen` – `{host, port}`, where port 0 asks the system for a free one, or
      `{:local, path}` for a unix socket. libpq accepts only sockets called
      `.s.PGSQL.PORT`; a path that is not called so is taken as a directory and gets
      `.s.PGSQL.5432` in it. Default `{"127.0.0.1", 0}`. An address that other machines can reach needs
      `:auth`.
    * `:ssl` – options of `:ssl` for the server's side, such as `[certfile: "server.pem", keyfile: "server.key"]`: clients
      may encrypt their connections over TCP. `verify: :verify_peer` and `cacertfile:` verify certificates of clients,
      `fail_if_no_peer_cert: true` requires them, `versions:` chooses versions of TLS (default: 1.2 and 1.3). Rules for
      `hostssl` and `hostnossl` in the file of `:auth` tell encrypted connections from others. Certificates and
      keys are read when the server starts and by `PgliteEx.reload/2`; with `sni_hosts:` or `sni_fun:` by `:ssl`
      itself, which keeps them for two minutes, or until a reload. The file of a private key must have mode 0600, or 0640
      if it is root's; those that `sni_fun:` names are not looked at. Passwords can be bound to the certificate (libpq's
      `channel_binding=require`), unless it depends on the client (`sni_hosts:`, `sni_fun:`, several in
      `certs_keys:`). `PgliteEx.connection_opts/2` does not ask for encryption, because
      its connections do not leave the machine: give it `ssl:` for others. Clients may also begin with TLS without a
      request for it (libpq's `sslnegotiation=direct`), and then have to name the protocol (ALPN), as libpq does.
    * `:send_timeout` – how long a client may leave unread what is sent to it, in milliseconds, or
      `:infinity`; then its connection is closed. Default 60,000.
    * `:template` – in `:isolated` mode, the template that connections clone; in `:shared` mode, the
      template that a new cluster is a copy of (see `PgliteEx.Template`). `:database` then names the
      database in it, which `PgliteEx.Template.list/1` returns; `PgliteEx.prepare/4` gives it the
      template's name.
    * `:warm` – how many clones of a template in use are kept ready in advance.
    * `:data` – the directory that the shared cluster is kept in. It gets a new cluster if it is empty
      or not there, and no other program can open it meanwhile. Default: none; the cluster is in
      memory then, and gone with the program.
    * `:on_data_loss` – what happens when the program of a shared cluster in memory ends by itself or
      is killed. `:restart`: it is started again, with a new cluster, at the same address. `:stop`: the
      server ends with the reason `:shutdown`, so that its supervisor decides what is started again,
      as it does for any process whose state is lost. Default: `:stop`, because clients that go on with
      an empty cluster find no tables; and `:restart` with `:after_start`, which makes these again.
      Clusters that `:data` keeps, and those of `:isolated` mode, are always started again.
    * `:shutdown_timeout` – how long the program may take to stop, in milliseconds: its sessions end, and
      a shared cluster is shut down. Then it ends anyway, and a cluster in a directory recovers at its
      next start. The supervisor waits three seconds longer before it ends it by force. Default 5,000.
    * `:max_connections` – how many sessions a shared cluster takes at once, and how many connections
      there can be in mode `:isolated`, where the default is as many as the system allows; one more gets
      SQLSTATE `53300`.
    * `:memory_limit` – the memory of the program; `:cluster_memory_limit` and `:cluster_disk_limit` – those of
      every cluster that has no limits of its own: see `PgliteEx.Limits`.
    * `:metrics` – `{host, port}`: the program answers HTTP requests of Prometheus there, for `/metrics`, and for
      `/healthz` and `/readyz`. Port 0 asks the system for a free one, which the program logs. The answers contain the
      names of clusters, and no data. Default: none.
    * `:settings` – further settings of a shared cluster, as in `postgresql.conf`, as a keyword
      list: `[work_mem: "16MB", jit: "off"]`. `authentication_timeout` also limits how long clients may take over TLS and
      their startup packet, and holds in both modes. With `wal_level: "logical"`, subscribers can follow its changes,
      such as `Postgrex.ReplicationConnection` with the options of `PgliteEx.connection_opts/2`; see the guide "A live
      query".
    * `:executable` – the path of `pglite-port`. Default: the environment variable `PGLITE_PORT`, or
      else the first of `priv/pglite-port` of this application, where `mix compile` and
      `mix pglite_ex.install` put it; `target/release` and `target/debug` of the checkout around this
      library; the directories of `PATH`.
    * `:pglite_dir` – the directory of PGlite's files.
    * `:extensions` – bundles of extensions of your own: paths of `.tar.gz` files with
      `share/postgresql/extension/*` and `lib/postgresql/*.so`, which every cluster offers besides those of
      PGlite and of the packages beside it. Their libraries are trusted. Default: none.
    * `:cache_dir` – where compiled code and templates are kept.
    * `:icu_data` – ICU's data for languages with a collation of their own: a directory, or a
      package such as `icudt76l.dat`.
    * `:log_level` – the least level of what the program reports, to Logger and on its standard error:
      `:error`, `:warn`, `:info`, `:debug` or `:trace`. Default `:info`. With `:debug`, Logger also gets what
      PostgreSQL writes about the sessions of clients, such as the errors of their statements, which the
      clients get in any case.

  Where no default is named, the program has one: see `pglite-port port --help`.
  """

  alias PgliteEx.{Limits, OptionValue, Password}

  @enforce_keys [:listen]
  defstruct name: nil,
            mode: :shared,
            database: nil,
            username: "postgres",
            auth: nil,
            password: nil,
            trust_everyone_who_can_connect: false,
            after_start: nil,
            after_start_timeout: 300_000,
            listen: nil,
            ssl: nil,
            send_timeout: 60_000,
            template: nil,
            warm: nil,
            data: nil,
            on_data_loss: nil,
            shutdown_timeout: 5_000,
            max_connections: nil,
            memory_limit: nil,
            cluster_memory_limit: nil,
            cluster_disk_limit: nil,
            metrics: nil,
            settings: [],
            executable: nil,
            pglite_dir: nil,
            extensions: [],
            cache_dir: nil,
            icu_data: nil,
            log_level: nil

  @type listen :: {:inet.ip_address(), :inet.port_number()} | {:local, Path.t()}

  @type after_start :: (connection_opts :: keyword -> term) | {module, atom, [term]}

  @type t :: %__MODULE__{
          name: nil | GenServer.name(),
          mode: :shared | :isolated,
          database: String.t(),
          username: String.t(),
          auth: nil | :trust | :scram_sha_256 | Path.t(),
          # See `PgliteEx.Password`.
          password: nil | (() -> String.t()),
          trust_everyone_who_can_connect: boolean,
          after_start: nil | after_start,
          after_start_timeout: pos_integer | :infinity,
          listen: listen,
          # A function, because it may have a private key in it.
          ssl: nil | (() -> keyword),
          send_timeout: pos_integer | :infinity,
          template: nil | String.t(),
          warm: nil | non_neg_integer,
          data: nil | Path.t(),
          on_data_loss: :restart | :stop,
          shutdown_timeout: non_neg_integer,
          max_connections: nil | pos_integer,
          memory_limit: nil | Limits.size(),
          cluster_memory_limit: nil | Limits.size(),
          cluster_disk_limit: nil | Limits.size(),
          metrics: nil | {:inet.ip_address(), :inet.port_number()},
          settings: [{atom, String.t() | number | boolean}],
          executable: nil | Path.t(),
          pglite_dir: nil | Path.t(),
          extensions: [Path.t()],
          cache_dir: nil | Path.t(),
          icu_data: nil | Path.t(),
          log_level: nil | :error | :warn | :info | :debug | :trace
        }

  @default_log_level :info

  @doc """
  Validates options and fills in the defaults.

      iex> PgliteEx.Options.new!(listen: {"localhost", 5433}).listen
      {{127, 0, 0, 1}, 5433}

      iex> PgliteEx.Options.new!(mode: :isolated, template: "my_app").database
      "my_app"

      iex> PgliteEx.Options.new!(mode: :fast)
      ** (ArgumentError) PgliteEx option mode: :fast is not allowed; it takes :shared or :isolated
  """
  @spec new!(keyword) :: t
  def new!(options) do
    unless Keyword.keyword?(options) do
      raise ArgumentError,
            "PgliteEx takes its options as a keyword list"
    end

    fields =
      [listen: {"127.0.0.1", 0}]
      |> Keyword.merge(options)
      |> Enum.map(fn {key, value} -> {key, OptionValue.validate!(key, value)} end)

    fill_in(struct!(__MODULE__, fields))
  end

  @doc """
  The same options with secrets that are not shown, for child specifications, which end up in reports.

      iex> hidden = PgliteEx.Options.hide_secrets(name: MyApp.Postgres, password: "secret")
      iex> {hidden[:name], is_function(hidden[:password], 0)}
      {MyApp.Postgres, true}
  """
  @spec hide_secrets(keyword) :: keyword
  def hide_secrets(options) do
    if Keyword.keyword?(options), do: Enum.map(options, &hide_secret/1), else: options
  end

  defp hide_secret({:password, given}) when given != nil do
    case Password.hide(given) do
      {:ok, password} -> {:password, password}
      # What is refused at the start of the server is not shown either.
      :error -> {:password, fn -> given end}
    end
  end

  defp hide_secret({:ssl, given}) when is_list(given), do: {:ssl, fn -> given end}
  defp hide_secret(option), do: option

  @doc "Whether a line of the program with this level goes to Logger."
  @spec logs?(t, String.t()) :: boolean
  def logs?(%__MODULE__{log_level: least}, level),
    do: rank(level) <= rank(Atom.to_string(least || @default_log_level))

  # An unknown level is the least important one.
  defp rank(level) do
    levels = OptionValue.log_levels()
    Enum.find_index(levels, &(Atom.to_string(&1) == level)) || length(levels)
  end

  defp fill_in(%{after_start: function, mode: :isolated}) when function != nil do
    OptionValue.refuse!(
      :after_start,
      function,
      "none in mode :isolated, where nothing that it does would last; see PgliteEx.prepare/4"
    )
  end

  defp fill_in(%{data: data, mode: :isolated}) when data != nil do
    OptionValue.refuse!(
      :data,
      data,
      "none in mode :isolated; its clusters are gone when their connections close"
    )
  end

  # The database in a template may have any name. One of another name would be made, and be empty.
  defp fill_in(%{template: template, mode: :shared, database: nil}) when template != nil do
    OptionValue.refuse!(
      :database,
      nil,
      "the name of the database in the template #{inspect(template)} in mode :shared"
    )
  end

  defp fill_in(%{auth: :scram_sha_256, password: nil}) do
    OptionValue.refuse!(:auth, :scram_sha_256, "a :password as well")
  end

  defp fill_in(
         %{auth: auth, trust_everyone_who_can_connect: false, listen: {host, _port}} = options
       )
       when auth in [nil, :trust] and is_tuple(host) do
    if loopback?(host) do
      complete(options)
    else
      OptionValue.refuse!(
        :listen,
        options.listen,
        "an address of the loopback interface, because other machines could connect as a superuser without a " <>
          "password; give auth: and password:, or trust_everyone_who_can_connect: true"
      )
    end
  end

  defp fill_in(options), do: complete(options)

  defp loopback?({127, _, _, _}), do: true
  defp loopback?({0, 0, 0, 0, 0, 0, 0, 1}), do: true
  defp loopback?({0, 0, 0, 0, 0, 0xFFFF, high, _low}), do: div(high, 256) == 127
  defp loopback?(_address), do: false

  defp complete(options) do
    on_data_loss = if options.after_start, do: :restart, else: :stop

    %{
      options
      | database: options.database || options.template || "postgres",
        on_data_loss: options.on_data_loss || on_data_loss
    }
  end
end
