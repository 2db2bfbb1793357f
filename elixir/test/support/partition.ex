defmodule PgliteEx.Partition do
  @moduledoc "What a partition of a test suite does, on a node of its own."

  alias PgliteEx.{Parts, Session}

  @doc "Starts a server that lives as long as the node."
  def start(options) do
    {:ok, _applications} = Application.ensure_all_started(:pglite_ex)
    caller = self()

    keeper =
      spawn(fn ->
        {:ok, server} = PgliteEx.start_link(options)
        send(caller, {self(), server})
        Process.sleep(:infinity)
      end)

    monitor = Process.monitor(keeper)

    receive do
      {^keeper, server} -> server
      {:DOWN, ^monitor, :process, ^keeper, reason} -> exit(reason)
    end
  end

  @doc "Prepares a template, and tells the process that is globally registered as this module."
  def migrate(connection_opts) do
    send(:global.whereis_name(__MODULE__), {:migrated, node()})
    database = connection_opts[:database]

    Session.run(Parts.registry!(connection_opts[:pglite_ex]), database, [], fn session ->
      {:ok, _rows} =
        Session.query(session, "create table t as select n from generate_series(1, 1000) n")
    end)
  end

  @doc "Uses that many databases of the template `name`; what is in each after it was changed."
  def use_databases(server, name, count) do
    1..count
    |> Task.async_stream(fn number -> use_database(server, name, number) end, timeout: :infinity)
    |> Enum.map(fn {:ok, result} -> result end)
    |> Enum.frequencies()
  end

  defp use_database(server, name, number) do
    Session.run(Parts.registry!(server), name, [], fn session ->
      {:ok, _rows} =
        Session.query(session, "insert into t values (#{-number}); delete from t where n > 999")

      {:ok, [[sum, foreign]]} =
        Session.query(session, "select sum(n) - #{-number}, count(*) filter (where n < 0) from t")

      {sum, foreign}
    end)
  end
end
