"""Recipe as it is written: its values, the candidates beside it, and the places of its keys."""

from collections.abc import Mapping
from typing import NamedTuple

from harness import plugins
from harness.config.grids import GridMember
from harness.config.problems import Keys, Tree
from harness.plugins import Method
from harness.spec import Recipe


class WrittenRecipe(NamedTuple):
    """A candidate's recipe, as far as it could be read, beside all `members` of the file."""

    name: str
    recipe: Recipe
    members: Mapping[str, GridMember]
    tree: Tree

    @property
    def method(self) -> Method:
        """Its method, which has to be one that there is."""
        return plugins.method(self.recipe.method)

    @property
    def keys(self) -> Keys:
        """The keys below which it stands: those of its grid where it is a member of one."""
        return "candidates", self.members[self.name].source

    def where(self, *keys: str) -> str:
        """Return `file:line` of one of its values."""
        return self.tree.where((*self.keys, *keys))
