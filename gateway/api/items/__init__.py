"""The Responses API on top of chat: from items to a chat request, and from a chat's choice to items and events"""
