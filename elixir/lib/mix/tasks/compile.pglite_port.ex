defmodule Mix.Tasks.Compile.PglitePort do
  @shortdoc "Finds the program pglite-port, or builds it with cargo"
  @moduledoc """
  Finds the program `pglite-port`, or builds it with cargo. Part of `mix compile`.

    * Where the program can be found (option `:executable` of `PgliteEx.Options`), nothing is done.
    * Otherwise, in a checkout with its Rust source and with `cargo` in the `PATH`, the program is
      built with `cargo build --release` and copied to `priv/`.
    * Otherwise one message says what to do, and compilation goes on: the library can be used
      once `mix pglite_ex.install` has run, or the option `:executable` names a program.
  """

  use Mix.Task.Compiler

  alias PgliteEx.Executable

  @impl Mix.Task.Compiler
  def run(_arguments) do
    case Executable.find() do
      {:ok, _path} -> {:noop, []}
      {:error, error} -> build(error)
    end
  end

  defp build(error) do
    source = Executable.checkout()
    cargo = System.find_executable("cargo")

    if source && cargo && System.get_env("PGLITE_PORT") == nil do
      Mix.shell().info("Building pglite-port with cargo; the first time takes minutes.")
      Mix.Tasks.PgliteEx.Install.build(source, cargo)
    else
      Mix.shell().error("PgliteEx is compiled, but #{Exception.message(error)}")
      {:noop, []}
    end
  end
end
