defmodule Mix.Tasks.PgliteEx.Server do
  @shortdoc "Runs a PostgreSQL server, in the foreground or beside other tasks"
  @moduledoc """
  Runs a server in the foreground until it is interrupted, and prints its URL:

      mix pglite_ex.server

  or as long as other tasks run, which need a server and start no application:

      mix pglite_ex.server --and ecto.create --and ecto.migrate
      mix pglite_ex.server MyApp.Postgres --and ecto.migrate

  The cluster is kept in the directory `pgdata`, unless an option says something else.

  An argument such as `MyApp.Postgres` names the server of an application: its options are those of
  `config :my_app, MyApp.Postgres`, except for `after_start:`, which is left to the application. The
  options below change them.

  Each `--and` is followed by a task with its arguments. Tasks run one after the other, and the server
  stops after the last; with its cluster in memory it goes on until Mix ends, for tasks that follow in an
  alias. If one of them starts the application, and the application has the same server
  (by its name or its address) among its children, the child is not started a second time. If
  something listens at the server's address already, such as the application in another terminal, the
  tasks use that.

  ## Options

    * `--host HOST`, `--port PORT` – where to listen; `127.0.0.1`, port 5433
    * `--socket PATH` – listen on a unix socket instead
    * `--mode shared|isolated` – see the guide "Modes"; `shared`
    * `--database NAME`, `--username NAME` – what the printed URL names; a shared server makes them when
      they are not there
    * `--data DIRECTORY` – where the shared cluster is kept; `pgdata` in shared mode without a template
    * `--memory` – keeps no cluster: it is gone with the server
    * `--template NAME` – what connections of `--mode isolated` clone, or a shared cluster begins as
    * `--cache-dir DIRECTORY`, `--icu-data PATH`, `--pglite-dir DIRECTORY`, `--executable PATH` – as in
      `PgliteEx.Options`; templates are found with the same cache and ICU data with which they were made
    * `--extension FILE` – offers an extension of your own, see `extensions:` in `PgliteEx.Options`; can be given
      several times
    * `--max-connections N`, `--warm N`
    * `--trust-everyone-who-can-connect` – listens also on a `--host` that other machines can reach. With a
      password, the options of the server in the application's configuration have `auth:` and `password:`
    * `--log-level LEVEL`
    * `--and TASK` – runs the task, with its arguments
  """

  use Mix.Task

  alias PgliteEx.{Error, Launchers, Options, TaskServer}

  # As of `pglite-port serve`.
  @default_port 5433
  @default_data "pgdata"

  @switches [
    host: :string,
    port: :integer,
    socket: :string,
    mode: :string,
    database: :string,
    username: :string,
    data: :string,
    memory: :boolean,
    template: :string,
    cache_dir: :string,
    icu_data: :string,
    pglite_dir: :string,
    extension: [:string, :keep],
    executable: :string,
    max_connections: :integer,
    trust_everyone_who_can_connect: :boolean,
    warm: :integer,
    log_level: :string
  ]

  @impl Mix.Task
  def run(arguments) do
    # Aliases that bring a server along may follow each other.
    Mix.Task.reenable("pglite_ex.server")
    [own | tasks] = split(arguments)
    {options, rest} = OptionParser.parse!(own, strict: @switches)
    if length(rest) > 1, do: refuse(tl(rest))
    if [] in tasks, do: Mix.raise("mix pglite_ex.server needs a task after --and")
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:pglite_ex)
    # An optional application, which is not always found in the VM that has just compiled it.
    _ = Application.ensure_all_started(:telemetry)
    options = server_options(options, configured(rest))

    if tasks == [] do
      run_in_foreground(options)
    else
      Launchers.add_to_path()
      run_beside(options, tasks)
    end
  end

  @doc false
  @spec server_options(keyword, nil | keyword) :: keyword
  def server_options(options, configured \\ nil) do
    {memory?, options} = Keyword.pop(options, :memory, false)
    {place, options} = Keyword.split(options, [:host, :port, :socket])

    listen =
      cond do
        place[:socket] -> [listen: {:local, place[:socket]}]
        place == [] and configured != nil -> []
        true -> [listen: {place[:host] || "127.0.0.1", place[:port] || @default_port}]
      end

    options =
      Enum.map(options, fn
        {key, value} when key in [:mode, :log_level] -> {key, String.to_atom(value)}
        option -> option
      end)

    {extensions, options} = Keyword.pop_values(options, :extension)
    extensions = if extensions == [], do: [], else: [extensions: extensions]
    options = Keyword.merge(configured || [], listen ++ extensions ++ options)

    cond do
      memory? -> Keyword.delete(options, :data)
      configured || options[:mode] == :isolated || options[:template] -> options
      true -> Keyword.put_new(options, :data, @default_data)
    end
  end

  defp split(arguments) do
    {first, others} =
      Enum.reduce(arguments, {[], []}, fn
        "--and", {part, parts} -> {[], [Enum.reverse(part) | parts]}
        argument, {part, parts} -> {[argument | part], parts}
      end)

    Enum.reverse([Enum.reverse(first) | others])
  end

  # The options in the application's configuration of the server with this name.
  defp configured([]), do: nil

  defp configured([name]) do
    unless name =~ ~r/^[A-Z][\w.]*$/, do: refuse([name])
    name = Module.concat([name])
    apps = Map.keys(Mix.Project.apps_paths() || %{Mix.Project.config()[:app] => "."})

    case Enum.find_value(apps, &Application.get_env(&1, name)) do
      nil ->
        Mix.raise(
          "there is no server #{inspect(name)}: it needs options, `config #{inspect(hd(apps))}, " <>
            "#{inspect(name)}, name: #{inspect(name)}, …`"
        )

      options ->
        options |> Keyword.delete(:after_start) |> Keyword.put_new(:name, name)
    end
  end

  defp refuse(arguments),
    do: Mix.raise("mix pglite_ex.server does not take #{Enum.join(arguments, " ")}")

  defp run_in_foreground(options) do
    case start(options) do
      {:ok, server} ->
        # Without the password, which would stay on the screen.
        url = URI.parse(PgliteEx.url(server))
        [user | _password] = String.split(url.userinfo, ":")
        Mix.shell().info(URI.to_string(%{url | userinfo: user}))
        Process.flag(:trap_exit, true)
        Process.link(server)

        receive do
          {:EXIT, ^server, reason} -> Mix.raise(sentence(reason))
        end

      {:error, reason} ->
        Mix.raise(sentence(reason))
    end
  end

  defp run_beside(options, tasks) do
    validated = Options.new!(options)

    if TaskServer.place(validated) do
      run_all(tasks)
    else
      place = start_or_find!(options, validated)

      try do
        run_all(tasks)
      after
        unless stays?(validated, place), do: stop(place)
      end
    end
  end

  # What is in memory is for the tasks that follow.
  defp stays?(options, place),
    do: is_pid(place) and options.mode == :shared and options.data == nil

  defp start_or_find!(options, validated) do
    case start(options) do
      {:ok, server} ->
        # With the port that the system has chosen.
        TaskServer.put(%{validated | listen: PgliteEx.address(server)}, server)
        server

      {:error, %Error{code: :eaddrinuse} = error} ->
        unless TaskServer.fixed?(validated.listen), do: Mix.raise(Exception.message(error))
        TaskServer.put(validated, :elsewhere)
        :elsewhere

      {:error, reason} ->
        Mix.raise(sentence(reason))
    end
  end

  defp stop(place) do
    TaskServer.delete()
    if is_pid(place), do: PgliteEx.stop(place)
  end

  defp sentence(%Error{} = error), do: Exception.message(error)
  defp sentence({%Error{} = error, _stacktrace}), do: Exception.message(error)
  defp sentence(reason), do: Exception.format_exit(reason)

  defp run_all(tasks),
    do: Enum.each(tasks, fn [task | arguments] -> Mix.Task.run(task, arguments) end)

  # The server is not linked to this process, which is that of the tasks.
  defp start(options) do
    before = Process.flag(:trap_exit, true)

    result = PgliteEx.start_link(options)

    with {:ok, server} <- result, do: Process.unlink(server)
    with {:error, _reason} <- result, do: flush_exit()
    Process.flag(:trap_exit, before)
    result
  end

  defp flush_exit do
    receive do
      {:EXIT, _server, _reason} -> :ok
    after
      0 -> :ok
    end
  end
end
