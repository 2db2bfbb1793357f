defmodule PgliteEx.Executable do
  @moduledoc false
  # Finds the program `pglite-port`, and says what to do when it is missing.
  #
  # The places, in order:
  #
  #   1. the option `:executable`, or the environment variable `PGLITE_PORT`: when one of them is
  #      given, no other place is looked at;
  #   2. `priv/pglite-port` of this application, where `mix compile` and
  #      `mix pglite_ex.install` put it;
  #   3. `target/release` and `target/debug` of the checkout around this library, if there is one;
  #   4. the directories of `PATH`.

  @name "pglite-port"
  @checkout Path.expand("../../..", __DIR__)

  @doc """
  The path of the program, or an error that says where it was looked for.

  ## Examples

      iex> {:error, error} = PgliteEx.Executable.find("/nowhere/pglite-port")
      iex> error.code
      :executable_not_found
  """
  @spec find(nil | Path.t()) :: {:ok, Path.t()} | {:error, PgliteEx.Error.t()}
  def find(given \\ nil) do
    case given || System.get_env("PGLITE_PORT") do
      nil -> find_in(places())
      path -> find_in([Path.expand(path)])
    end
  end

  @doc "Where the checkout around this library is, if there is one."
  @spec checkout_path() :: Path.t()
  def checkout_path, do: @checkout

  @doc "The same, if the program's source is there; `nil` otherwise."
  @spec checkout() :: Path.t() | nil
  def checkout, do: if(File.regular?(Path.join(@checkout, "Cargo.toml")), do: @checkout)

  @doc "Where this application keeps its own copy of the program."
  @spec installed_path() :: Path.t()
  def installed_path, do: Path.join(priv_dir(), @name)

  @doc "Where this application keeps its own copy of PGlite's files."
  @spec pglite_path() :: Path.t()
  def pglite_path, do: Path.join(priv_dir(), "pglite")

  @doc "The same, if they are there; `nil` until `mix pglite_ex.install` has put them there."
  @spec installed_pglite_dir() :: Path.t() | nil
  def installed_pglite_dir do
    if File.regular?(Path.join(pglite_path(), "pglite.wasm")), do: pglite_path()
  end

  # The application is not loaded yet while its own `mix compile` runs.
  defp priv_dir do
    case :code.priv_dir(:pglite_ex) do
      {:error, :bad_name} -> Path.expand("../../priv", __DIR__)
      directory -> List.to_string(directory)
    end
  end

  defp places do
    built =
      for root <- List.wrap(checkout()), profile <- ["release", "debug"] do
        Path.join([root, "target", profile, @name])
      end

    [installed_path() | built] ++ List.wrap(System.find_executable(@name))
  end

  defp find_in(places) do
    case Enum.find(places, &executable?/1) do
      nil -> {:error, not_found(places)}
      path -> {:ok, path}
    end
  end

  # Executable by some user, as in `System.find_executable/1`; a start shows whether by this one.
  defp executable?(path) do
    case File.stat(path) do
      {:ok, %{type: :regular, mode: mode}} -> Bitwise.band(mode, 0o111) != 0
      _no_file -> false
    end
  end

  defp not_found(places) do
    %PgliteEx.Error{
      code: :executable_not_found,
      message: """
      there is no executable file #{Enum.map_join(places, ", nor ", & &1)}.
      Run `mix pglite_ex.install`, or name an archive with the program in PGLITE_EX_ARCHIVE \
      (`mix help compile.pglite_port`), or give the path of pglite-port as the option \
      executable: or in the environment variable PGLITE_PORT.\
      """
    }
  end
end
