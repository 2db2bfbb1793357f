defmodule Mix.Tasks.PgliteEx.Server do
  @shortdoc "Runs a PostgreSQL server in the foreground"
  @moduledoc """
  Runs a server in the foreground, until it is interrupted, and prints its URL.

      mix pglite_ex.server --port 5433

  ## Options

    * `--host HOST`, `--port PORT` – where to listen; `127.0.0.1`, port 5432
    * `--socket PATH` – listen on a unix socket instead
    * `--mode shared|isolated` – see the guide "Modes"; `shared`
    * `--database NAME`, `--username NAME` – what the printed URL names; a shared server makes them when
      they are not there
    * `--data DIRECTORY` – where the shared cluster is kept
    * `--template NAME` – what connections of `--mode isolated` clone
    * `--max-connections N`, `--warm N`
    * `--log-level LEVEL`
    * `--and TASK` – runs the task, with its arguments, and stops the server after it:

          mix pglite_ex.server --port 5433 --and ecto.setup
  """

  use Mix.Task

  @switches [
    host: :string,
    port: :integer,
    socket: :string,
    mode: :string,
    database: :string,
    username: :string,
    data: :string,
    template: :string,
    max_connections: :integer,
    warm: :integer,
    log_level: :string
  ]

  @impl Mix.Task
  def run(arguments) do
    {arguments, and_then} = split(arguments)
    {options, rest} = OptionParser.parse!(arguments, strict: @switches)
    if rest != [], do: Mix.raise("mix pglite_ex.server does not take #{Enum.join(rest, " ")}")
    Mix.Task.run("app.config")
    {:ok, _started} = Application.ensure_all_started(:pglite_ex)
    server = start!(server_options(options))
    Mix.shell().info(PgliteEx.url(server))

    case and_then do
      [] -> wait_for_end(server)
      [task | task_arguments] -> Mix.Task.run(task, task_arguments)
    end

    PgliteEx.stop(server)
  end

  @doc false
  @spec server_options(keyword) :: keyword
  def server_options(options) do
    {place, options} = Keyword.split(options, [:host, :port, :socket])

    listen =
      if place[:socket],
        do: {:local, place[:socket]},
        else: {Keyword.get(place, :host, "127.0.0.1"), Keyword.get(place, :port, 5432)}

    [listen: listen] ++
      Enum.map(options, fn
        {key, value} when key in [:mode, :log_level] -> {key, String.to_atom(value)}
        option -> option
      end)
  end

  defp split(arguments) do
    case Enum.split_while(arguments, &(&1 != "--and")) do
      {own, ["--and" | and_then]} -> {own, and_then}
      {own, []} -> {own, []}
    end
  end

  defp start!(options) do
    Process.flag(:trap_exit, true)

    case PgliteEx.start_link(options) do
      {:ok, server} -> server
      {:error, reason} -> Mix.raise(Exception.format_exit(reason))
    end
  end

  defp wait_for_end(server) do
    receive do
      {:EXIT, ^server, reason} -> Mix.raise(Exception.format_exit(reason))
    end
  end
end
