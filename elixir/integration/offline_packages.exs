defmodule OfflinePackages do
  @moduledoc """
  Lets Mix take packages from the directory `MIX_DEPS_PATH` by directory name,
  without any package manager.

  It stands in for Hex on machines without a network: dependencies of dependencies, which name
  packages without saying where they are, are looked for in the same directory. Versions are
  checked by Mix as always.
  """

  @behaviour Mix.SCM

  @impl Mix.SCM
  def fetchable?, do: false

  @impl Mix.SCM
  def format(options), do: options[:dest]

  @impl Mix.SCM
  def format_lock(_options), do: nil

  @impl Mix.SCM
  def accepts_options(app, options) do
    directory = System.get_env("MIX_DEPS_PATH")

    if directory && !options[:path],
      do: Keyword.put(options, :dest, Path.join(Path.expand(directory), Atom.to_string(app)))
  end

  @impl Mix.SCM
  def checked_out?(options), do: File.dir?(options[:dest])

  @impl Mix.SCM
  def checkout(_options), do: nil

  @impl Mix.SCM
  def update(_options), do: nil

  @impl Mix.SCM
  def lock_status(_options), do: :ok

  @impl Mix.SCM
  def equal?(one, other), do: one[:dest] == other[:dest]

  @impl Mix.SCM
  def managers(_options), do: []
end

# Before Hex, which takes every package that nobody else does.
Mix.SCM.prepend(OfflinePackages)
