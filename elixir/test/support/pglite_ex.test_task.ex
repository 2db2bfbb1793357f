defmodule Mix.Tasks.PgliteEx.TestTask do
  @moduledoc "A task that ends, for the test of `mix pglite_ex.server --and`."
  use Mix.Task

  @impl Mix.Task
  def run([]), do: Mix.shell().info("the task ran beside a server")
end
