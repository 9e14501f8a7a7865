"""The template workbench: sample messages on a page that follows every change."""
