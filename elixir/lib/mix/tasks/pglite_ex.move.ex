defmodule Mix.Tasks.PgliteEx.Move do
  @shortdoc "Moves a database to another PostgreSQL while it is in use"
  @moduledoc """
  Moves the database at a URL to an ordinary PostgreSQL, version 14 or later, while it is in use:

      mix pglite_ex.move postgresql://postgres@127.0.0.1:5433/my_app \\
        --to postgresql://postgres@db.example.com/my_app

  The source is a server in mode `:shared` with `settings: [wal_level: "logical"]`, which may run in another
  VM; `PgliteEx.move/3` does the same from within an application. The guide "Moving out" has the steps.

  How far it has come is printed, and at the end the tables with the numbers of their rows. Until the switch
  it can be interrupted: the source is then as it was. It fails when something is not as it has to be, which
  it says before it changes anything, or when a table differs at the end.

  ## Options

    * `--to URL` – the target. Its database is created, and must not be there before
    * `--source-for-target URL` – how the target's server connects to the source, if it is not by the same URL
    * `--start-over` – drops the target's database if an earlier move has left it unfinished
    * `--executable PATH`, `--pglite-dir DIRECTORY`, `--cache-dir DIRECTORY` – as in `PgliteEx.Options`

  A password that should not be in the history of a shell, or in the list of processes, may be in
  `PGPASSWORD` or `~/.pgpass` instead of a URL.
  """

  use Mix.Task

  alias PgliteEx.Move

  @switches [
    to: :string,
    source_for_target: :string,
    start_over: :boolean,
    executable: :string,
    pglite_dir: :string,
    cache_dir: :string
  ]

  @impl Mix.Task
  def run(arguments) do
    {options, rest} = OptionParser.parse!(arguments, strict: @switches)
    {target, options} = Keyword.pop(options, :to)

    case {rest, target} do
      {[_source, argument | _more], _target} ->
        Mix.raise("mix pglite_ex.move does not take #{argument}")

      {[source], target} when target != nil ->
        move(source, target, options)

      _none ->
        Mix.raise("mix pglite_ex.move needs two URLs: mix pglite_ex.move SOURCE --to TARGET")
    end
  end

  defp move(source, target, options) do
    tell = fn {_event, line} -> Mix.shell().info(line) end
    # Whoever gives a password on the command line shows it already.
    options =
      options |> Keyword.put_new(:source_for_target, source) |> Keyword.put(:on_progress, tell)

    case Move.run(source, target, options) do
      {:ok, tables} ->
        Enum.each(tables, &Mix.shell().info(row(&1)))

        case for %{same?: false, table: table} <- tables, do: table do
          [] ->
            :ok

          differ ->
            Mix.raise("tables differ, and the source has all rows: #{Enum.join(differ, ", ")}")
        end

      {:error, error} ->
        Mix.raise(Exception.message(error))
    end
  rescue
    error in ArgumentError -> Mix.raise(Exception.message(error))
  end

  defp row(%{table: table, rows: rows, rows_in_target: rows_in_target}),
    do: "#{table}: #{rows} rows, #{rows_in_target} in the target"
end
