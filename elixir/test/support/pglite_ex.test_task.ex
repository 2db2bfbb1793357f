defmodule Mix.Tasks.PgliteEx.TestTask do
  @moduledoc """
  A task for the tests of `mix pglite_ex.server --and`, which starts an application's children, as `mix run`
  does.
  """
  use Mix.Task

  @impl Mix.Task
  def run(arguments) do
    Mix.Task.reenable("pglite_ex.test_task")
    do_run(arguments)
  end

  defp do_run([]), do: Mix.shell().info("the task ran beside a server")

  defp do_run(["--start-child" | options]) do
    task = self()
    {options, []} = OptionParser.parse!(options, strict: [name: :string, port: :integer])

    child =
      case options do
        [name: name] ->
          {PgliteEx, name: Module.concat([name]), after_start: &send(task, {:prepared, &1})}

        [port: port] ->
          {PgliteEx, listen: {"127.0.0.1", port}}
      end

    {:ok, supervisor} = Supervisor.start_link([child], strategy: :one_for_one)
    [{_id, pid, :supervisor, _modules}] = Supervisor.which_children(supervisor)
    Mix.shell().info("the child is #{inspect(pid)}")
    Supervisor.stop(supervisor)
  end
end
